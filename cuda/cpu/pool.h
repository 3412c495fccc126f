// Threads and scratch memory of the CPU kernels. Compiled once for the baseline processor, used by every ISA build.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace sd {

// Runs run(context, item, worker) for item = 0 .. items-1, each exactly once, in any order, on up to thread_count() threads;
// worker < thread_count() names the thread. When the pool is busy with another caller, runs everything on the calling thread.
void run_items(int64_t items, void (*run)(void* context, int64_t item, int worker), void* context);
int thread_count();

// Grow-only scratch buffers that live longer than one call: fresh memory costs a page fault per 4 KB, more than most kernels.
class Workspace {
  public:
    static constexpr int kBuffers = 16;
    // At least `bytes` of 64-byte aligned memory; contents are kept only when the buffer did not have to grow.
    void* bytes(int buffer, size_t bytes);
    ~Workspace();
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

  private:
    void* data_[kBuffers] = {};
    size_t size_[kBuffers] = {};
};

Workspace* acquire_workspace();          // from a free list, so that calls from several threads do not share
void release_workspace(Workspace* workspace);

}  // namespace sd
