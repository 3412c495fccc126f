// Kernels with one deliberate mistake each; the emulator must name it. Run as `sabotage NAME`.
#include <cstdio>
#include <cstdlib>

#include "gpu/device.h"

namespace {

struct Numbers {
    float value[64];
};

__global__ void divergent_barrier(float*) {
    if (threadIdx.x < 16) __syncthreads();
    else __syncthreads();
}

__global__ void early_exit(float*) {
    if (threadIdx.x == 40) return;
    __syncthreads();
}

__global__ void missing_lane(float* out) {
    if (threadIdx.x % 32 == 7) __syncthreads();
    out[threadIdx.x] = float(__ballot_sync(0xffffffffu, 1));
    if (threadIdx.x % 32 != 7) __syncthreads();
}

__global__ void stranger_in_warp(float* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, float(threadIdx.x), 1); }

__global__ void shuffle_from_outside(float* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}

__global__ void different_collectives(float* out) {
    if (threadIdx.x % 2) out[threadIdx.x] = float(__any_sync(0xffffffffu, 1));
    else __syncwarp();
}

__global__ void shared_overrun(float*) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x + 1] = 1.0f;
}

__global__ void shared_overread(float* out) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = numbers.value[threadIdx.x + 1];
}

__global__ void too_much_shared(float* out) {
    SD_DYNAMIC_SHARED(float, numbers);
    out[threadIdx.x] = numbers[threadIdx.x];
}

// No mistake the scheduler can see, but results that give it away.
__global__ void unwritten_shared(float* out) {
    SD_SHARED(Numbers, numbers);
    if (threadIdx.x != 5) numbers.value[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = numbers.value[threadIdx.x];
}

__global__ void missing_barrier(float* out) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = numbers.value[63 - threadIdx.x];
}

// The shuffle lets the right number through in every thread order; it does not order memory.
__global__ void missing_syncwarp(float* out) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x] = float(threadIdx.x);
    const float own = __shfl_xor_sync(0xffffffffu, float(threadIdx.x), 1);
    out[threadIdx.x] = own + numbers.value[threadIdx.x ^ 1];
}

// Everybody has read what is overwritten, as the votes show, but nothing orders the reads before the writes.
__global__ void overwritten_too_early(float* out) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x] = float(threadIdx.x);
    __syncwarp();
    out[threadIdx.x] = numbers.value[threadIdx.x ^ 1];
    if (__any_sync(0xffffffffu, 1)) numbers.value[threadIdx.x] = 0.0f;
}

__global__ void correct(float* out) {
    SD_SHARED(Numbers, numbers);
    numbers.value[threadIdx.x] = float(threadIdx.x);
    const int even = __syncthreads_count(threadIdx.x % 2 == 0);
    const float next = __shfl_down_sync(0xffffffffu, numbers.value[63 - threadIdx.x], 1);
    __syncthreads();
    numbers.value[threadIdx.x] = 0.0f;
    __syncwarp();
    out[threadIdx.x] = numbers.value[threadIdx.x ^ 1];
    __syncwarp();
    numbers.value[threadIdx.x] = 1.0f;
    out[threadIdx.x] = next + float(even) + float(__popc(__ballot_sync(0xffffffffu, threadIdx.x % 32 < 3)));
}

struct Case {
    const char* name;
    void (*kernel)(float*);
    int threads, shared_bytes;
};

const Case kCases[] = {
    {"divergent_barrier", divergent_barrier, 64, 0},
    {"early_exit", early_exit, 64, 0},
    {"missing_lane", missing_lane, 64, 0},
    {"stranger_in_warp", stranger_in_warp, 64, 0},
    {"shuffle_from_outside", shuffle_from_outside, 64, 0},
    {"different_collectives", different_collectives, 64, 0},
    {"shared_overrun", shared_overrun, 64, 0},
    {"shared_overread", shared_overread, 64, 0},
    {"too_much_shared", too_much_shared, 64, 49 << 10},
    {"too_many_threads", correct, 1025, 0},
    {"unwritten_shared", unwritten_shared, 64, 0},
    {"missing_barrier", missing_barrier, 64, 0},
    {"missing_syncwarp", missing_syncwarp, 64, 0},
    {"overwritten_too_early", overwritten_too_early, 64, 0},
    {"correct", correct, 64, 0},
};

}  // namespace

extern "C" void simt_set_seed(int seed);

int main(int, char** arguments) {
    float out[2048] = {};
    simt_set_seed(std::atoi(arguments[2]));
    for (const Case& c : kCases) {
        if (std::strcmp(c.name, arguments[1]) != 0) continue;
        SD_LAUNCH(c.kernel, dim3(1), dim3(c.threads), size_t(c.shared_bytes), nullptr, out);
        for (int i = 0; i < 64; i++) std::printf("%g ", out[i]);
        return 0;
    }
    return 2;
}
