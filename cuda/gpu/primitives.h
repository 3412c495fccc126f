// Device-wide steps that are not kernels of ours: radix sort, prefix sum (cub under nvcc, std:: on a host compiler),
// memset, and the column sum every reduction ends with. Each returns a CUDA error code, 0 for success.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scene_distill {

// Scratch bytes that stable_sort_pairs and exclusive_sum need for up to `count` items.
size_t scratch_bytes(int count);

// Sorts (key, value) pairs by the low `key_bits` of the key; equal keys keep their order.
struct SortPairs {
    const uint32_t* keys_in;
    uint32_t* keys_out;
    const int* values_in;
    int* values_out;
};
int stable_sort_pairs(const SortPairs& pairs, int count, int key_bits, void* scratch, size_t scratch_size,
                      void* stream);

// out[i] = in[0] + ... + in[i - 1].
int exclusive_sum(const int* in, int* out, int count, void* scratch, size_t scratch_size, void* stream);

int fill_bytes(void* address, int byte, size_t bytes, void* stream);

// out[column] = sum over rows of partials[row, column], in double and in a fixed order: the same bytes every time.
int sum_columns(const float* partials, int rows, int columns, float* out, void* stream);

// The error a launch left behind.
int last_error();

}  // namespace scene_distill
