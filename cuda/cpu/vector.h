// The vector type of this build (SD_ISA names it), the functions built on it, and the loops over pool items.
#pragma once
#if defined(__AVX512F__)
#include "vector_avx512.h"
#else
#include "vector_generic.h"
#endif
#include <math.h>

#include "pool.h"

namespace sd::SD_ISA {

// This file and the kernels are compiled once per ISA: everything lives in a namespace of its own, and nothing from the C++
// standard library is used, whose shared inline functions the linker would merge across instruction sets.
template <class T> inline T least(T a, T b) { return a < b ? a : b; }
template <class T> inline T most(T a, T b) { return a > b ? a : b; }

// x = 2^x for n values side by side, relative error 2e-7: whole part into the exponent, degree-5 minimax polynomial on [0, 1).
template <int n> inline void exp2_abreast(Floats* x) {
    constexpr float kCoefficients[] = {8.9893397e-3f, 5.5826318e-2f, 2.4015361e-1f, 6.9315308e-1f, 9.9999994e-1f};
    Floats whole[n], part[n], p[n];
    for (int i = 0; i < n; ++i) split_power(x[i], whole[i], part[i]), p[i] = 1.8775767e-3f;
    for (float coefficient : kCoefficients)
        for (int i = 0; i < n; ++i) p[i] = fma(p[i], part[i], coefficient);
    for (int i = 0; i < n; ++i) x[i] = scale_by_power(p[i], whole[i]);
}
inline Floats exp2(Floats x) {
    exp2_abreast<1>(&x);
    return x;
}

// log2 of positive normal numbers: 2 atanh((m - 1) / (m + 1)) / ln 2 on m in [2/3, 4/3].
inline Floats log2(Floats x) {
    Floats e = exponent(x), m = mantissa(x);
    Mask high = m > 1.3333333f;
    m = select(high, m * 0.5f, m);
    e = select(high, e + 1.0f, e);
    Floats s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    Floats p = fma(s2, 0.32059890f, 0.41219859f);  // 2 / (9 ln 2), 2 / (7 ln 2), ...
    p = fma(p, s2, 0.57707802f);
    p = fma(p, s2, 0.96179669f);
    p = fma(p, s2, 2.8853901f);
    return fma(p, s, e);
}

// While it lives, denormal numbers count as zero on this thread.
class TinyIsZero {
  public:
#if defined(__SSE__)
    TinyIsZero() { __builtin_ia32_ldmxcsr(before_ | 0x8040); }
    ~TinyIsZero() { __builtin_ia32_ldmxcsr(before_); }

  private:
    unsigned before_ = __builtin_ia32_stmxcsr();
#else
    TinyIsZero() {}
#endif
};

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;

inline Floats exp(Floats x) { return exp2(max(x * kLog2E, -126.0f)); }
inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

// body(item, worker) for item in [0, items), spread over the pool.
template <class Body> inline void parallel_items(int64_t items, Body&& body) {
    run_items(
        items, [](void* context, int64_t item, int worker) { (*static_cast<decltype(&body)>(context))(item, worker); }, &body);
}

// body(begin, end, chunk) over fixed chunks of [0, count): the same chunks on any number of threads.
template <class Body> inline void parallel_chunks(int64_t count, int64_t chunk, Body&& body) {
    parallel_items((count + chunk - 1) / chunk,
                   [&](int64_t item, int) { body(item * chunk, least(count, (item + 1) * chunk), item); });
}

class Scratch {  // a leased Workspace
  public:
    Scratch() : workspace_(acquire_workspace()) {}
    explicit Scratch(void* state) : workspace_(static_cast<Workspace*>(state)) {}
    ~Scratch() {
        if (workspace_) release_workspace(workspace_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T> T* array(int buffer, int64_t count) {
        return static_cast<T*>(workspace_->bytes(buffer, static_cast<size_t>(most<int64_t>(count, 1)) * sizeof(T)));
    }
    void* keep() {  // hand the workspace to a later call
        void* state = workspace_;
        workspace_ = nullptr;
        return state;
    }

  private:
    Workspace* workspace_;
};

}  // namespace sd::SD_ISA
