// CUDA's device vocabulary for a host compiler: with it the kernels of cuda/gpu compile with g++ and run on a CPU.
//
// Idea       Every CUDA thread is a fiber (its own stack, switched in user space). Blocks run one after another on one
//            OS thread. A fiber runs until it needs others: a block barrier, a warp collective, or its end; the
//            scheduler (runtime.cpp) completes a collective when everybody it names has arrived.
// Finds      barriers reached by only part of a block, collectives named by lanes that never come, shuffles from lanes
//            outside the mask, shared memory read before it was written (poisoned with NaN) or written past its end
//            (guard bands), launches a device would refuse, order-dependent code (the thread order is seeded), and, in
//            a build with -fsanitize=thread, races in shared memory (races.cpp).
// Not found  races between blocks, memory-model bugs, anything about speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct float2 {
    float x, y;
};
struct float3 {
    float x, y, z;
};
struct float4 {
    float x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace simt {

using Site = std::source_location;

// What a lane asks of its warp. The scheduler answers all lanes at once when the last lane named in the mask has asked.
enum class Ask : uint8_t { synchronise, shuffle, ballot };

struct Collective {
    Ask ask;
    unsigned mask;
    uint64_t value;   // shuffle: bits offered to the others; ballot: 0 or 1
    int source_lane;  // shuffle: whose bits are wanted
};

struct Position {
    dim3 thread, block, block_size, grid_size;
};

struct LaunchShape {
    dim3 grid, block;
    size_t dynamic_shared_bytes;
};

const Position& position();  // of the running fiber
int lane();
uint64_t warp_collective(const Collective& collective, const Site& site);
int block_barrier(int predicate, const Site& site);  // how many threads passed a non-zero predicate
void* shared_memory(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();
void launch(const char* kernel, const LaunchShape& shape, const std::function<void()>& body);

template <class T>
T shuffle(unsigned mask, T value, int source_lane, const Site& site) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = warp_collective({Ask::shuffle, mask, bits, source_lane}, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace simt

#define threadIdx (::simt::position().thread)
#define blockIdx (::simt::position().block)
#define blockDim (::simt::position().block_size)
#define gridDim (::simt::position().grid_size)

inline void __syncthreads(simt::Site site = simt::Site::current()) { simt::block_barrier(0, site); }
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::current()) {
    return simt::block_barrier(predicate, site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::current()) {
    simt::warp_collective({simt::Ask::synchronise, mask, 0, 0}, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
    return unsigned(simt::warp_collective({simt::Ask::ballot, mask, uint64_t(predicate != 0), 0}, site));
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::current()) {
    return __ballot_sync(mask, predicate, site) == mask;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, simt::Site site = simt::Site::current()) {
    return simt::shuffle(mask, value, source & 31, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, simt::Site site = simt::Site::current()) {
    return simt::shuffle(mask, value, simt::lane() ^ bits, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, simt::Site site = simt::Site::current()) {
    const int source = simt::lane() - distance;
    return simt::shuffle(mask, value, source < 0 ? simt::lane() : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, simt::Site site = simt::Site::current()) {
    const int source = simt::lane() + distance;
    return simt::shuffle(mask, value, source > 31 ? simt::lane() : source, site);
}

// Blocks run one after another and fibers switch only at collectives, so a plain update is atomic here.
template <class T>
T atomicAdd(T* address, T value) {
    const T before = *address;
    *address = before + value;
    return before;
}

template <class T>
T atomicMax(T* address, T value) {
    const T before = *address;
    if (value > before) *address = value;
    return before;
}

inline float __expf(float x) { return std::exp(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __float_as_int(float x) {
    int bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

// One object of shared memory: `type` must be a single token or an alias (an array is a struct member).
#define SD_SHARED(type, name) \
    static char name##_key;   \
    type& name = *static_cast<type*>(::simt::shared_memory(&name##_key, sizeof(type), alignof(type)))

#define SD_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::simt::dynamic_shared_memory())

#define SD_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    static_cast<void>(stream), ::simt::launch(#kernel, {grid, block, shared_bytes}, [&] { (kernel)(__VA_ARGS__); })
