// The thread pool: the caller and count-1 persistent workers take items from one atomic counter.
//
// A worker that finds no work spins for some microseconds (the next kernel of a training step usually follows at once), then
// sleeps. Workers join late or not at all: a short job is finished by the caller before a sleeper has woken up.
// Not OpenMP: torch brings its own libgomp, and two pools that spin on the same cores slow each other down.
#include "pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include <pthread.h>

#include "../bindings.h"

namespace sd {
namespace {

constexpr auto kSpin = std::chrono::microseconds(30);

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {
        for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            quit_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    int threads() const { return threads_; }

    void run(int64_t items, void (*body)(void*, int64_t, int), void* context) {
        body_ = body;
        context_ = context;
        items_ = items;
        next_.store(0, std::memory_order_relaxed);
        open_.store(++generation_);
        if (sleepers_.load() > 0) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        take_items(0);
        open_.store(0);
        while (active_.load() != 0) relax();
    }

  private:
    void take_items(int worker) {
        for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) body_(context_, item, worker);
    }

    void serve(int worker) {
        uint64_t done = 0;
        for (;;) {
            uint64_t job = wait_for_job(done);
            if (job == 0) return;
            active_.fetch_add(1);
            // The caller closes the job before it waits for active_ == 0, so an open job cannot disappear under us.
            if (open_.load() == job) take_items(worker);
            active_.fetch_sub(1);
            done = job;
        }
    }

    uint64_t wait_for_job(uint64_t done) {
        auto fresh = [&] {
            uint64_t job = open_.load();
            return job != 0 && job != done ? job : 0;
        };
        auto until = std::chrono::steady_clock::now() + kSpin;
        do {
            for (int i = 0; i < 32; ++i, relax())
                if (uint64_t job = fresh()) return job;
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        uint64_t job = 0;
        wake_.wait(lock, [&] { return quit_ || (job = fresh()) != 0; });
        sleepers_.fetch_sub(1);
        return quit_ ? 0 : job;
    }

    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    bool quit_ = false;
    uint64_t generation_ = 0;
    std::atomic<uint64_t> open_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<int> active_{0};
    std::atomic<int> sleepers_{0};
    void (*body_)(void*, int64_t, int) = nullptr;
    void* context_ = nullptr;
    int64_t items_ = 0;
};

struct Process {
    std::mutex busy;  // held by the one caller that uses the pool
    Pool* pool = nullptr;
    std::atomic<int> wanted{0};
    std::mutex shelf;
    std::vector<Workspace*> free;
};

Process* process = nullptr;

// A forked child has none of the parent's threads: it starts over, and leaves the parent's pool to the parent.
void start_over() {
    int wanted = process ? process->wanted.load() : 0;
    process = new Process;
    process->wanted = wanted;
}

Process& here() {
    static std::once_flag once;
    std::call_once(once, [] {
        start_over();
        pthread_atfork(nullptr, nullptr, start_over);
    });
    return *process;
}

}  // namespace

int thread_count() {
    int wanted = here().wanted.load();
    if (wanted > 0) return wanted;
    unsigned cores = std::thread::hardware_concurrency();
    return cores ? static_cast<int>(cores) : 1;
}

void run_items(int64_t items, void (*run)(void*, int64_t, int), void* context) {
    Process& p = here();
    std::unique_lock<std::mutex> lock(p.busy, std::try_to_lock);
    if (items <= 1 || !lock.owns_lock() || thread_count() == 1) {
        for (int64_t item = 0; item < items; ++item) run(context, item, 0);
        return;
    }
    if (!p.pool || p.pool->threads() != thread_count()) {
        delete p.pool;
        p.pool = new Pool(thread_count());
    }
    p.pool->run(items, run, context);
}

void* Workspace::bytes(int buffer, size_t bytes) {
    if (bytes > size_[buffer]) {
        free(data_[buffer]);
        constexpr size_t kHuge = size_t(2) << 20;
        size_t grown = bytes < kHuge ? (bytes + 4095) / 4096 * 4096 : (bytes + bytes / 4 + kHuge - 1) / kHuge * kHuge;
        data_[buffer] = aligned_alloc(bytes < kHuge ? 4096 : kHuge, grown);
        size_[buffer] = data_[buffer] ? grown : 0;
        if (!data_[buffer]) abort();
#if defined(MADV_HUGEPAGE)
        if (bytes >= kHuge) madvise(data_[buffer], grown, MADV_HUGEPAGE);
#endif
    }
    return data_[buffer];
}

Workspace::~Workspace() {
    for (void* data : data_) free(data);
}

Workspace* acquire_workspace() {
    Process& p = here();
    std::lock_guard<std::mutex> lock(p.shelf);
    if (p.free.empty()) return new Workspace;
    Workspace* workspace = p.free.back();
    p.free.pop_back();
    return workspace;
}

void release_workspace(Workspace* workspace) {
    Process& p = here();
    std::lock_guard<std::mutex> lock(p.shelf);
    p.free.push_back(workspace);
}

}  // namespace sd

extern "C" {

void sd_set_threads(int32_t count) { sd::here().wanted = count; }

int32_t sd_get_threads(void) { return sd::thread_count(); }

void sd_release_scratch(void) {
    sd::Process& p = sd::here();
    std::lock_guard<std::mutex> lock(p.shelf);
    for (sd::Workspace* workspace : p.free) delete workspace;
    p.free.clear();
}

int32_t sd_keep_freed_memory(void) {
#if defined(__GLIBC__)
    // Blocks up to 1 GiB come from the heap, whose top is never trimmed: no page faults when tensors of a step return. The
    // heap grows by 1 GiB of addresses at once (memory follows when it is touched), on huge pages where the system lets us.
    constexpr int kGrowth = 1 << 30;
    if (!mallopt(M_MMAP_THRESHOLD, kGrowth) || !mallopt(M_TRIM_THRESHOLD, 0x7fffffff) || !mallopt(M_TOP_PAD, kGrowth)) return 0;
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t kHuge = uintptr_t(2) << 20;
    uintptr_t before = reinterpret_cast<uintptr_t>(sbrk(0));
    void* volatile grown = malloc(kGrowth / 2);  // volatile: or the compiler leaves both calls out
    free(grown);
    uintptr_t begin = (before + kHuge - 1) / kHuge * kHuge, end = reinterpret_cast<uintptr_t>(sbrk(0)) / kHuge * kHuge;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    return 1;
#else
    return 0;
#endif
}

int32_t sd_cpu_supports(const char* isa) {
    if (!strcmp(isa, "portable")) return 1;
#if defined(__x86_64__) && defined(SD_WITH_X86)
    __builtin_cpu_init();
    if (!strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (!strcmp(isa, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    return 0;
}
}
