// The scheduler: threads of a warp until they wait, warps until they stand at a block barrier, blocks one by one.
#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "sanitizer.h"

namespace simt {

namespace {

constexpr int kWarp = 32;
constexpr size_t kGuardBytes = 64;
constexpr unsigned char kGuard = 0xA5;
constexpr unsigned char kPoison = 0xFF;  // NaN as a float, -1 as an int
constexpr size_t kSharedBytesLimit = 48 << 10;
constexpr unsigned kThreadsLimit = 1024;

bool same_site(const Site& a, const Site& b) {
    return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

const char* waits_for(const Thread& thread) {
    switch (thread.state) {
        case State::ready: return "runs on from";
        case State::at_barrier: return "waits at the barrier of";
        case State::at_collective: return "waits at the warp collective of";
        case State::done: return "has left the kernel; it last waited at";
    }
    return "";
}

}  // namespace

Device& device() {
    static Device instance;
    return instance;
}

// ---- shared memory -------------------------------------------------------------------------------------------------

void SharedMemory::start_block(size_t dynamic_bytes) {
    constexpr size_t kArenaBytes = 2 * kSharedBytesLimit;
    allow(arena_.data(), arena_.size());
    arena_.assign(kArenaBytes, kPoison);
    forbid(arena_.data(), arena_.size());
    objects_.clear();
    dynamic_bytes_ = dynamic_bytes;
    bytes_used_ = end_ = 0;
}

void* SharedMemory::find(const void* key, size_t bytes, size_t alignment) {
    for (const Object& object : objects_) {
        if (object.key == key) return arena_.data() + object.offset;
    }
    const size_t align = std::max<size_t>(alignment, kGuardBytes);
    const size_t offset = (end_ + kGuardBytes + align - 1) / align * align;
    bytes_used_ += bytes;
    if (bytes_used_ > kSharedBytesLimit) device().report("uses more than 48 KiB of shared memory");
    end_ = offset + bytes;
    if (kSanitized) {
        allow(arena_.data() + offset, bytes);
    } else {
        std::fill_n(arena_.begin() + long(offset - kGuardBytes), kGuardBytes, kGuard);
        std::fill_n(arena_.begin() + long(end_), kGuardBytes, kGuard);
    }
    objects_.push_back({key, offset, bytes});
    return arena_.data() + offset;
}

size_t SharedMemory::offset_of(const void* address) const {
    const auto* byte = static_cast<const unsigned char*>(address);
    const std::less<const unsigned char*> before;
    return before(byte, arena_.data()) || !before(byte, arena_.data() + end_) ? kOutside : size_t(byte - arena_.data());
}

bool SharedMemory::guards_intact() const {
    if (kSanitized) return true;  // each single access was checked
    for (const Object& object : objects_) {
        for (size_t i = 1; i <= kGuardBytes; i++) {
            if (arena_[object.offset - i] != kGuard || arena_[object.offset + object.bytes + i - 1] != kGuard)
                return false;
        }
    }
    return true;
}

// ---- launches ------------------------------------------------------------------------------------------------------

void Device::report(const char* problem, const Thread* thread, const Thread* other) const {
    const dim3& b = position_.block;
    std::fprintf(stderr, "SIMT: kernel %s, block (%u, %u, %u): %s\n", kernel_, b.x, b.y, b.z, problem);
    for (const Thread* t : {thread, other}) {
        if (!t) continue;
        std::fprintf(stderr, "SIMT:   thread (%u, %u, %u) %s %s:%u\n", t->index.x, t->index.y, t->index.z,
                     waits_for(*t), t->site.file_name(), t->site.line());
    }
    std::abort();
}

void Device::check_launch(const LaunchShape& shape) const {
    const auto& [grid, block, shared_bytes] = shape;
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kThreadsLimit || block.z > 64) report("launched with a block size no device accepts");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) report("launched with an empty grid");
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) report("launched with a grid no device accepts");
}

void Device::reserve_threads(int count) {
    if (count <= capacity_) return;
    threads_ = std::make_unique<Thread[]>(size_t(count));
    capacity_ = count;
}

void Device::launch(const char* kernel, const LaunchShape& shape, const std::function<void()>& body) {
    kernel_ = kernel;
    body_ = &body;
    check_launch(shape);
    count_ = int(shape.block.x * shape.block.y * shape.block.z);
    reserve_threads(count_);
    position_.block_size = shape.block;
    position_.grid_size = shape.grid;
    order_.seed(unsigned(seed_));
    for (unsigned z = 0; z < shape.grid.z; z++) {
        for (unsigned y = 0; y < shape.grid.y; y++) {
            for (unsigned x = 0; x < shape.grid.x; x++) {
                position_.block = dim3(x, y, z);
                shared_.start_block(shape.dynamic_shared_bytes);
                accesses_.order_block();
                run_block();
                if (!shared_.guards_intact()) report("wrote outside its shared memory");
            }
        }
    }
}

// ---- one block -----------------------------------------------------------------------------------------------------

void Device::run_block() {
    const dim3& size = position_.block_size;
    for (int i = 0; i < count_; i++) {
        Thread& thread = threads_[size_t(i)];
        const unsigned index = unsigned(i);
        thread.index = dim3(index % size.x, index / size.x % size.y, index / (size.x * size.y));
        thread.state = State::ready;
        thread.site = Site::current();
        thread.fiber.start([] { device().run_thread_body(); });
    }
    std::vector<int> warps(size_t((count_ + kWarp - 1) / kWarp));
    std::iota(warps.begin(), warps.end(), 0);
    do {
        if (seed_ >= 0) std::shuffle(warps.begin(), warps.end(), order_);
        for (int warp : warps) run_warp(warp);
    } while (complete_barrier());
}

void Device::run_warp(int warp) {
    const int first = warp * kWarp, lanes = std::min(kWarp, count_ - first);
    int order[kWarp];
    std::iota(order, order + lanes, 0);
    do {
        if (seed_ >= 0) std::shuffle(order, order + lanes, order_);
        for (int i = 0; i < lanes; i++) {
            Thread& thread = threads_[size_t(first + order[i])];
            if (thread.state != State::ready) continue;
            current_ = &thread;
            position_.thread = thread.index;
            thread.fiber.resume();
        }
    } while (complete_collectives(warp));
}

// Answers every collective whose lanes have all arrived. False when no lane of the warp waits at a collective any more.
bool Device::complete_collectives(int warp) {
    const int first = warp * kWarp, lanes = std::min(kWarp, count_ - first);
    bool waiting = false, progress = false;
    for (int i = 0; i < lanes; i++) {
        Thread& thread = threads_[size_t(first + i)];
        if (thread.state != State::at_collective) continue;
        waiting = true;
        const unsigned mask = thread.collective.mask;
        if (!(mask >> i & 1)) report("a lane called a warp collective whose mask does not name it", &thread);
        bool complete = true;
        for (int j = 0; j < lanes; j++) {
            const Thread& other = threads_[size_t(first + j)];
            if (!(mask >> j & 1) || other.state == State::done) continue;
            if (other.state != State::at_collective) {
                complete = false;
            } else if (other.collective.mask != mask || other.collective.ask != thread.collective.ask ||
                       !same_site(other.site, thread.site)) {
                report("lanes of one mask meet at different warp collectives", &thread, &other);
            }
        }
        if (!complete) continue;
        answer_collective(warp, mask);
        progress = true;
    }
    if (waiting && !progress) {
        for (int i = 0; i < lanes; i++) {
            const Thread& thread = threads_[size_t(first + i)];
            if (thread.state != State::at_collective) continue;
            for (int j = 0; j < lanes; j++) {
                const Thread& other = threads_[size_t(first + j)];
                if (other.state == State::at_barrier) {
                    report("deadlock: a warp collective waits for a lane that waits at a block barrier", &thread,
                           &other);
                }
            }
            report("deadlock: a warp collective waits for a lane that never comes", &thread);
        }
    }
    return waiting;
}

void Device::answer_collective(int warp, unsigned mask) {
    const int first = warp * kWarp, lanes = std::min(kWarp, count_ - first);
    const auto takes_part = [&](int lane) {
        return lane < lanes && (mask >> lane & 1) && threads_[size_t(first + lane)].state != State::done;
    };
    uint64_t ballot = 0;
    bool synchronises = false;
    for (int i = 0; i < lanes; i++) {
        if (takes_part(i)) ballot |= (threads_[size_t(first + i)].collective.value & 1) << i;
    }
    for (int i = 0; i < lanes; i++) {
        if (!takes_part(i)) continue;
        Thread& thread = threads_[size_t(first + i)];
        const Collective& collective = thread.collective;
        thread.answer = ballot;
        if (collective.ask == Ask::shuffle) {
            if (!takes_part(collective.source_lane)) report("a shuffle reads a lane that takes no part in it", &thread);
            thread.answer = threads_[size_t(first + collective.source_lane)].collective.value;
        }
    }
    for (int i = 0; i < lanes; i++) {
        if (takes_part(i)) threads_[size_t(first + i)].state = State::ready;
        synchronises = synchronises || (takes_part(i) && threads_[size_t(first + i)].collective.ask == Ask::synchronise);
    }
    if (synchronises) accesses_.order_warp(warp);  // of part of a warp: taken for the whole
}

// Releases the block barrier when the whole block stands at it.
bool Device::complete_barrier() {
    const Thread *waiting = nullptr, *gone = nullptr;
    barrier_votes_ = 0;
    for (int i = 0; i < count_; i++) {
        const Thread& thread = threads_[size_t(i)];
        if (thread.state == State::done) {
            gone = &thread;
        } else if (!waiting) {
            waiting = &thread;
        } else if (!same_site(waiting->site, thread.site)) {
            report("divergent barrier: threads of one block wait at different barriers", waiting, &thread);
        }
        barrier_votes_ += thread.state == State::at_barrier && thread.predicate != 0;
    }
    if (!waiting) return false;
    if (gone) report("some threads left the kernel before a barrier that others wait at", waiting, gone);
    for (int i = 0; i < count_; i++) threads_[size_t(i)].state = State::ready;
    accesses_.order_block();
    return true;
}

// ---- called from inside a fiber ------------------------------------------------------------------------------------

void Device::run_thread_body() {
    (*body_)();
    current_->state = State::done;
    current_->fiber.suspend();
}

uint64_t Device::wait_for_warp(const Collective& collective, const Site& site) {
    Thread& self = *current_;
    self.state = State::at_collective;
    self.site = site;
    self.collective = collective;
    self.fiber.suspend();
    return self.answer;
}

int Device::wait_for_block(int predicate, const Site& site) {
    Thread& self = *current_;
    self.state = State::at_barrier;
    self.site = site;
    self.predicate = predicate;
    self.fiber.suspend();
    return barrier_votes_;
}

const Position& position() { return device().position(); }
int lane() { return device().current_index() % kWarp; }
uint64_t warp_collective(const Collective& collective, const Site& site) {
    return device().wait_for_warp(collective, site);
}
int block_barrier(int predicate, const Site& site) { return device().wait_for_block(predicate, site); }
void* shared_memory(const void* key, size_t bytes, size_t alignment) {
    return device().shared().find(key, bytes, alignment);
}
void* dynamic_shared_memory() { return device().shared().dynamic(); }
void launch(const char* kernel, const LaunchShape& shape, const std::function<void()>& body) {
    device().launch(kernel, shape, body);
}

}  // namespace simt

extern "C" void simt_set_seed(int seed) { simt::device().set_seed(seed); }
