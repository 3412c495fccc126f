// Fibers: a stack switch in a dozen instructions on x86-64, POSIX ucontext elsewhere.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"
#include "sanitizer.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

namespace {

constexpr size_t kStackBytes = (kSanitized ? 256 : 64) << 10;  // the sanitizer puts space around every variable

void* map_stack() {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) {
        std::perror("SIMT: no memory for a thread's stack");
        std::abort();
    }
    // The lowest page faults when a kernel overflows its stack.
    mprotect(stack, 4096, PROT_NONE);
    return stack;
}

}  // namespace

#if defined(__x86_64__)

// Saves the callee-saved registers on the current stack, stores its pointer in *from, and continues on stack `to`.
extern "C" void simt_switch_stack(void** from, void* to);
asm(R"(
.text
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

struct Fiber::Context {
    char* stack = static_cast<char*>(map_stack());
    void* own = nullptr;
    void* scheduler = nullptr;
};

void Fiber::start(void (*entry)()) {
    constexpr int kSavedRegisters = 6;
    allow(context_->stack, kStackBytes);
    void** top = reinterpret_cast<void**>(context_->stack + kStackBytes - 64);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
    context_->own = top;
}

void Fiber::resume() { simt_switch_stack(&context_->scheduler, context_->own); }
void Fiber::suspend() { simt_switch_stack(&context_->own, context_->scheduler); }

#else

struct Fiber::Context {
    char* stack = static_cast<char*>(map_stack());
    ucontext_t own, scheduler;
};

void Fiber::start(void (*entry)()) {
    allow(context_->stack, kStackBytes);
    getcontext(&context_->own);
    context_->own.uc_stack.ss_sp = context_->stack;
    context_->own.uc_stack.ss_size = kStackBytes;
    context_->own.uc_link = nullptr;
    makecontext(&context_->own, entry, 0);
}

void Fiber::resume() { swapcontext(&context_->scheduler, &context_->own); }
void Fiber::suspend() { swapcontext(&context_->own, &context_->scheduler); }

#endif

Fiber::Fiber() : context_(std::make_unique<Context>()) {}
Fiber::~Fiber() {
    allow(context_->stack, kStackBytes);
    munmap(context_->stack, kStackBytes);
}

}  // namespace simt
