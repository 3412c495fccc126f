// How many bytes per second this machine reads, and writes back after reading: the yardstick of the kernels' memory bounds.
//
// Work unit: 64 equal parts of one array on every thread of the pool, in order of address. Bound: memory, or the cache that
// holds an array of this size.
#pragma once
#include "vector.h"

namespace sd::SD_ISA {

constexpr int64_t kBandwidthParts = 64;

inline int64_t bandwidth_part(int64_t count) { return most<int64_t>(1, (count / kBandwidthParts) / (8 * kLanes)) * (8 * kLanes); }

// The sum keeps the compiler from leaving the reads out. Floats beyond the last whole part are not read.
inline float memory_read(const float* data, int64_t count) {
    const int64_t part = bandwidth_part(count);
    Scratch scratch;
    float* sums = scratch.array<float>(0, kBandwidthParts);
    parallel_items(kBandwidthParts, [&](int64_t item, int) {
        Floats total[8];
        for (auto& value : total) value = 0.0f;
        for (int64_t i = item * part; i < (item + 1) * part && i + 8 * kLanes <= count; i += 8 * kLanes)
            for (int k = 0; k < 8; ++k) total[k] = total[k] + load(data + i + k * kLanes);
        for (int k = 1; k < 8; ++k) total[0] = total[0] + total[k];
        sums[item] = sum(total[0]);
    });
    float total = 0.0f;
    for (int64_t item = 0; item < kBandwidthParts; ++item) total += sums[item];
    return total;
}

inline void memory_update(float* data, int64_t count) {
    const int64_t part = bandwidth_part(count);
    parallel_items(kBandwidthParts, [&](int64_t item, int) {
        for (int64_t i = item * part; i < (item + 1) * part && i + kLanes <= count; i += kLanes)
            store(data + i, load(data + i) * 0.5f);
    });
}

}  // namespace sd::SD_ISA
