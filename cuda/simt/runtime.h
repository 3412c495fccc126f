// The scheduler behind simt.h: one Block at a time, its threads as fibers. Only runtime.cpp and fiber.cpp use this.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "simt.h"

namespace simt {

// A suspended computation with its own stack. `resume` runs it until it calls `suspend` or ends.
class Fiber {
public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    void start(void (*entry)());
    void resume();   // called by the scheduler
    void suspend();  // called by the fiber itself

private:
    struct Context;
    std::unique_ptr<Context> context_;
};

enum class State : uint8_t { ready, at_barrier, at_collective, done };

struct Thread {
    Fiber fiber;
    dim3 index;
    State state;
    Site site;              // where it waits
    int predicate;          // at_barrier: its vote
    Collective collective;  // at_collective: what it asks
    uint64_t answer;
};

// Shared memory of one block: named objects between guard bands, poisoned when the block starts.
class SharedMemory {
public:
    void start_block(size_t dynamic_bytes);
    void* find(const void* key, size_t bytes, size_t alignment);
    void* dynamic() { return find(nullptr, dynamic_bytes_, 16); }
    size_t bytes_used() const { return bytes_used_; }
    size_t offset_of(const void* address) const;  // kOutside when the address lies elsewhere
    static constexpr size_t kOutside = ~size_t(0);
    bool guards_intact() const;

private:
    struct Object {
        const void* key;
        size_t offset, bytes;
    };
    std::vector<Object> objects_;
    std::vector<unsigned char> arena_;
    size_t dynamic_bytes_ = 0, bytes_used_ = 0, end_ = 0;
};

// Who touched which byte of a block's shared memory, and which accesses a barrier or a __syncwarp has ordered since.
// Only a library whose kernels are compiled with -fsanitize=thread reports its accesses (races.cpp).
class AccessLog {
public:
    void order_block() { block_epoch_++; }
    void order_warp(int warp) { warp_epoch_[size_t(warp)]++; }
    int record(size_t offset, size_t bytes, int thread, bool write);  // a thread it races with, or -1

private:
    struct Access {
        uint64_t block_epoch = 0, warp_epoch = 0;
        int thread = -1;
    };
    struct Byte {
        Access write, reads[2];
    };
    bool current(const Access& access) const { return access.block_epoch == block_epoch_; }
    bool unordered(const Access& access, int thread) const;
    void remember_read(Byte& byte, const Access& access) const;

    std::vector<Byte> bytes_;
    uint64_t block_epoch_ = 1;
    std::vector<uint64_t> warp_epoch_ = std::vector<uint64_t>(32);
};

class Device {
public:
    void set_seed(int seed) { seed_ = seed; }  // negative: threads run in index order
    void launch(const char* kernel, const LaunchShape& shape, const std::function<void()>& body);

    void run_thread_body();  // entry of every fiber
    void touch(const void* address, size_t bytes, bool write);  // the running thread reads or writes memory
    uint64_t wait_for_warp(const Collective& collective, const Site& site);
    int wait_for_block(int predicate, const Site& site);
    Thread& current() { return *current_; }
    const Position& position() const { return position_; }
    int current_index() const { return int(current_ - threads_.get()); }
    SharedMemory& shared() { return shared_; }
    [[noreturn]] void report(const char* problem, const Thread* thread = nullptr, const Thread* other = nullptr) const;

private:
    void check_launch(const LaunchShape& shape) const;
    void reserve_threads(int count);
    void run_block();
    void run_warp(int warp);  // until all its threads wait at a block barrier or are done
    bool complete_collectives(int warp);
    void answer_collective(int warp, unsigned mask);
    bool complete_barrier();  // false when the block is done

    const char* kernel_ = "";
    const std::function<void()>* body_ = nullptr;
    std::unique_ptr<Thread[]> threads_;
    int capacity_ = 0, count_ = 0, seed_ = -1, barrier_votes_ = 0;
    Thread* current_ = nullptr;
    Position position_;
    SharedMemory shared_;
    AccessLog accesses_;
    std::mt19937 order_;
};

Device& device();

}  // namespace simt
