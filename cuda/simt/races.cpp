// Races in shared memory: two threads touch a byte, one of them writes, and nothing orders the two accesses.
//
// Idea       g++ -fsanitize=thread puts a call before every access of a kernel. The calls usually end in the thread
//            sanitizer's library; here they end in the AccessLog, which knows CUDA's rules: a block barrier orders the
//            whole block, __syncwarp orders the lanes of a warp, shuffles and votes order nothing. So a missing
//            __syncwarp is found although a shuffle nearby lets the right numbers through in every thread order.
// Finds      every unordered pair of accesses that a run makes, whatever order the threads ran in.
// Not found  races in global memory; a __syncwarp that names too few lanes.
#include "runtime.h"

namespace simt {

namespace {

constexpr int kWarp = 32;

}  // namespace

bool AccessLog::unordered(const Access& access, int thread) const {
    if (access.thread < 0 || access.thread == thread || !current(access)) return false;
    const int warp = thread / kWarp;
    return access.thread / kWarp != warp || access.warp_epoch == warp_epoch_[size_t(warp)];
}

// Two readers are enough to know of any later write whether it races with one: two lanes of one warp since its last
// __syncwarp, or lanes of two warps since the last barrier.
void AccessLog::remember_read(Byte& byte, const Access& access) const {
    const int warp = access.thread / kWarp;
    for (Access& read : byte.reads) {
        if (read.thread == access.thread || !current(read)) {
            read = access;
            return;
        }
    }
    for (Access& read : byte.reads) {
        if (read.thread / kWarp == warp && read.warp_epoch != access.warp_epoch) {
            read = access;
            return;
        }
    }
    const bool same_warp = byte.reads[0].thread / kWarp == byte.reads[1].thread / kWarp;
    if (same_warp && byte.reads[0].thread / kWarp != warp) byte.reads[1] = access;
}

int AccessLog::record(size_t offset, size_t bytes, int thread, bool write) {
    if (bytes_.size() < offset + bytes) bytes_.resize(offset + bytes);
    const Access access = {block_epoch_, warp_epoch_[size_t(thread / kWarp)], thread};
    for (size_t i = offset; i < offset + bytes; i++) {
        Byte& byte = bytes_[i];
        if (unordered(byte.write, thread)) return byte.write.thread;
        if (!write) {
            remember_read(byte, access);
            continue;
        }
        for (const Access& read : byte.reads) {
            if (unordered(read, thread)) return read.thread;
        }
        byte = {access, {}};
    }
    return -1;
}

void Device::touch(const void* address, size_t bytes, bool write) {
    const size_t offset = shared_.offset_of(address);
    if (offset == SharedMemory::kOutside) return;
    const int other = accesses_.record(offset, bytes, current_index(), write);
    if (other < 0) return;
    report(write ? "race: a thread writes shared memory that another one uses, and nothing orders the two"
                 : "race: a thread reads shared memory that another one writes, and nothing orders the two",
           current_, &threads_[size_t(other)]);
}

}  // namespace simt

#define SD_HOOKS(bytes)                                                                                          \
    void __tsan_read##bytes(void* address) { simt::device().touch(address, bytes, false); }                      \
    void __tsan_write##bytes(void* address) { simt::device().touch(address, bytes, true); }                      \
    void __tsan_unaligned_read##bytes(void* address) { simt::device().touch(address, bytes, false); }            \
    void __tsan_unaligned_write##bytes(void* address) { simt::device().touch(address, bytes, true); }

extern "C" {
#pragma GCC visibility push(hidden)
SD_HOOKS(1)
SD_HOOKS(2)
SD_HOOKS(4)
SD_HOOKS(8)
SD_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { simt::device().touch(address, bytes, false); }
void __tsan_write_range(void* address, size_t bytes) { simt::device().touch(address, bytes, true); }
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_init() {}
#pragma GCC visibility pop
}
