// What every kernel file starts from: the CUDA language (from nvcc, or from the emulator in cuda/simt on a CPU), the
// three spellings that differ between them, and sums over a warp and over a block.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define SD_SHARED(type, name) __shared__ type name
#define SD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "../simt/simt.h"
#endif

namespace scene_distill {

constexpr int kTile = 16;  // TILE of scene_distill/core/conventions.py
constexpr int kTilePixels = kTile * kTile;

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Sum over the 32 lanes, the same in every lane.
__device__ __forceinline__ float warp_sum(float value) {
    for (int bit = kWarp / 2; bit > 0; bit >>= 1) value += __shfl_xor_sync(kFullWarp, value, bit);
    return value;
}

// Gradients that nobody asked for arrive as null pointers.
__device__ __forceinline__ float value_or_zero(const float* values, size_t index) {
    return values ? values[index] : 0.0f;
}

struct BlockSums {
    float per_warp[32];
};

// Sum over a block of full warps; valid in every thread. `sums` is shared memory and free again when this returns.
__device__ __forceinline__ float block_sum(float value, BlockSums& sums, int thread, int threads) {
    value = warp_sum(value);
    if (thread % kWarp == 0) sums.per_warp[thread / kWarp] = value;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < threads / kWarp; warp++) total += sums.per_warp[warp];
    __syncthreads();
    return total;
}

}  // namespace scene_distill
