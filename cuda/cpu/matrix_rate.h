// How many multiply-adds per second the products of wide features reach alone: the yardstick of raster_wide.h.
//
// Work unit: `blend` of one block with a full list of splats that are drawn in all of its pixels and kRateChannels channels, over
// and over, on every thread of the pool. The rows lie in L2, the sums in L1.
#pragma once
#include "raster_wide.h"

namespace sd::SD_ISA {

constexpr int kRateChannels = 128;

template <class Products> inline double blend_rounds(int64_t items, int64_t rounds) {
    Scratch scratch;
    const int64_t list = kWideBatch * (1 + kLanes), rows = int64_t(kWideBatch) * kRateChannels, sums = kLanes * kRateChannels;
    const int64_t each = whole_lines(list + rows + sums + sizeof(typename Products::Workspace) / 4 + 64);
    float* memory = scratch.array<float>(0, each * thread_count());
    parallel_items(items, [&](int64_t, int worker) {
        typename Products::Session session;
        Cutter cutter(memory + each * worker);
        auto& work = *reinterpret_cast<typename Products::Workspace*>(cutter.take(sizeof(typename Products::Workspace) / 4));
        BlockList full{reinterpret_cast<int32_t*>(cutter.take(kWideBatch)), cutter.take(kWideBatch * kLanes), kWideBatch};
        FeatureRows features{cutter.take(rows), kRateChannels};
        float* out = cutter.take(sums);
        for (int k = 0; k < kWideBatch; ++k) full.index[k] = k;
        for (int i = 0; i < kWideBatch * kLanes; ++i) full.weights[i] = 1.0f / 320.0f;
        for (int64_t i = 0; i < rows; ++i) features.data[i] = 1.0f;
        for (int64_t round = 0; round < rounds; ++round) Products::blend(full, features, work, out, true);
    });
    return double(items) * double(rounds) * kWideBatch * kLanes * kRateChannels;
}

// Runs items x rounds blends on the chosen matrix path; returns the multiply-adds that were done.
inline double matrix_multiply_adds(int64_t items, int64_t rounds) {
#if defined(SD_HAS_AMX)
    if (matrix_path() == MatrixPath::kAmx) return blend_rounds<AmxProducts<true>>(items, rounds);
    if (matrix_path() == MatrixPath::kAmxPlain) return blend_rounds<AmxProducts<false>>(items, rounds);
#endif
    return blend_rounds<VectorProducts>(items, rounds);
}

}  // namespace sd::SD_ISA
