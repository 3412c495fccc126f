// How many vector operations per second this machine starts: the yardstick of the kernels' issue bounds.
//
// Work unit: rounds of kChains independent fused multiply-adds in registers on every thread of the pool. No bytes. Bound: the
// ports of the vector unit, which is what is measured.
#pragma once
#include "vector.h"

namespace sd::SD_ISA {

constexpr int kChains = 16;  // covers the latency of 4 cycles on up to 4 ports

// Runs items x rounds x kChains operations; the sum keeps the compiler from leaving them out.
inline float multiply_add_chains(int64_t items, int64_t rounds) {
    Scratch scratch;
    float* sums = scratch.array<float>(0, items);
    parallel_items(items, [&](int64_t item, int) {
        Floats chain[kChains], factor = 0.999f, term = 0.5f;
        for (int k = 0; k < kChains; ++k) chain[k] = static_cast<float>(item + k);
        for (int64_t round = 0; round < rounds; ++round) {
            for (auto& value : chain) value = fma(value, factor, term);
        }
        for (int k = 1; k < kChains; ++k) chain[0] = chain[0] + chain[k];
        sums[item] = sum(chain[0]);
    });
    float total = 0.0f;
    for (int64_t item = 0; item < items; ++item) total += sums[item];
    return total;
}

}  // namespace sd::SD_ISA
