// Both sides of primitives.h, and the launchers that are not tied to one op.
#include "primitives.h"

#include "device.h"
#include "launchers.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#else
#include <numeric>
#include <vector>
#endif

namespace scene_distill {

#if defined(__CUDACC__)

size_t scratch_bytes(int count) {
    size_t sort = 0, scan = 0;
    const uint32_t* keys = nullptr;
    const int* values = nullptr;
    cub::DeviceRadixSort::SortPairs(nullptr, sort, keys, static_cast<uint32_t*>(nullptr), values,
                                    static_cast<int*>(nullptr), count);
    cub::DeviceScan::ExclusiveSum(nullptr, scan, values, static_cast<int*>(nullptr), count);
    return sort > scan ? sort : scan;
}

int stable_sort_pairs(const SortPairs& p, int count, int key_bits, void* scratch, size_t scratch_size, void* stream) {
    return cub::DeviceRadixSort::SortPairs(scratch, scratch_size, p.keys_in, p.keys_out, p.values_in, p.values_out,
                                           count, 0, key_bits, static_cast<cudaStream_t>(stream));
}

int exclusive_sum(const int* in, int* out, int count, void* scratch, size_t scratch_size, void* stream) {
    return cub::DeviceScan::ExclusiveSum(scratch, scratch_size, in, out, count, static_cast<cudaStream_t>(stream));
}

int fill_bytes(void* address, int byte, size_t bytes, void* stream) {
    return cudaMemsetAsync(address, byte, bytes, static_cast<cudaStream_t>(stream));
}

int last_error() { return cudaGetLastError(); }

#else

size_t scratch_bytes(int) { return 1; }

int stable_sort_pairs(const SortPairs& p, int count, int key_bits, void*, size_t, void*) {
    const uint32_t mask = key_bits == 32 ? ~0u : (1u << key_bits) - 1;
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return (p.keys_in[a] & mask) < (p.keys_in[b] & mask); });
    for (int i = 0; i < count; i++) {
        p.keys_out[i] = p.keys_in[order[i]];
        p.values_out[i] = p.values_in[order[i]];
    }
    return 0;
}

int exclusive_sum(const int* in, int* out, int count, void*, size_t, void*) {
    std::exclusive_scan(in, in + count, out, 0);
    return 0;
}

int fill_bytes(void* address, int byte, size_t bytes, void*) {
    std::memset(address, byte, bytes);
    return 0;
}

int last_error() { return 0; }

#endif

namespace {

constexpr int kRowLanes = 32;

struct ColumnSums {
    double sum[kRowLanes][kWarp];
};

// Work unit: 32 neighbouring columns; each warp walks every 32nd row, so reads are coalesced. Bound: memory.
__global__ void sum_columns_kernel(const float* __restrict__ partials, int rows, int columns, float* __restrict__ out) {
    SD_SHARED(ColumnSums, shared);
    const int column = blockIdx.x * kWarp + threadIdx.x;
    double sum = 0.0;
    if (column < columns) {
        for (int row = threadIdx.y; row < rows; row += kRowLanes) sum += partials[size_t(row) * columns + column];
    }
    shared.sum[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= columns) return;
    double total = 0.0;
    for (int lane = 0; lane < kRowLanes; lane++) total += shared.sum[lane][threadIdx.x];
    out[column] = float(total);
}

}  // namespace

int sum_columns(const float* partials, int rows, int columns, float* out, void* stream) {
    SD_LAUNCH(sum_columns_kernel, dim3(ceil_div(columns, kWarp)), dim3(kWarp, kRowLanes), 0, stream, partials, rows,
              columns, out);
    return last_error();
}

}  // namespace scene_distill

extern "C" size_t sd_cuda_scratch_bytes(int count) { return scene_distill::scratch_bytes(count); }

extern "C" const char* sd_cuda_error_string(int code) {
#if defined(__CUDACC__)
    return cudaGetErrorString(static_cast<cudaError_t>(code));
#else
    return code == 0 ? "no error" : "unknown error";
#endif
}

extern "C" int sd_cuda_set_device(int index) {
#if defined(__CUDACC__)
    return cudaSetDevice(index);
#else
    return index == 0 ? 0 : 1;
#endif
}
