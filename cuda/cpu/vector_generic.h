// Eight floats as a compiler vector: AVX2 when compiled with -mavx2 -mfma, else whatever the processor has (SSE2, NEON).
// Same interface as vector_avx512.h; included through vector.h.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sd::SD_ISA {

constexpr int kLanes = 8;
typedef float Vec __attribute__((vector_size(32)));
typedef int32_t Bits __attribute__((vector_size(32)));

struct Mask {
    Bits bits;  // 0 or -1
};

struct Floats {
    Vec v;
    Floats() = default;
    Floats(Vec value) : v(value) {}
    Floats(float x) : v(Vec{x, x, x, x, x, x, x, x}) {}
};

inline Floats operator+(Floats a, Floats b) { return a.v + b.v; }
inline Floats operator-(Floats a, Floats b) { return a.v - b.v; }
inline Floats operator*(Floats a, Floats b) { return a.v * b.v; }
inline Floats operator/(Floats a, Floats b) { return a.v / b.v; }
inline Floats operator-(Floats a) { return -a.v; }
inline Floats fma(Floats a, Floats b, Floats c) { return a.v * b.v + c.v; }   // contracted where the ISA has it
inline Floats fnma(Floats a, Floats b, Floats c) { return c.v - a.v * b.v; }  // c - a b
inline Floats from_bits(Bits b) { return (Vec)b; }
inline Floats min(Floats a, Floats b) { return a.v < b.v ? a.v : b.v; }
inline Floats max(Floats a, Floats b) { return a.v > b.v ? a.v : b.v; }
inline Floats abs(Floats a) { return from_bits((Bits)a.v & 0x7fffffff); }
inline Floats sqrt(Floats a) {
#if defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)a.v);
#else
    Floats r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = __builtin_sqrtf(a.v[i]);
    return r;
#endif
}
inline Floats truncate(Floats a) { return __builtin_convertvector(__builtin_convertvector(a.v, Bits), Vec); }
// Whole parts; values beyond 2^24 are whole already (and NaN stays NaN).
inline Floats floor(Floats a) {
    Vec t = truncate(a).v;
    t = t > a.v ? t - 1.0f : t;
    return abs(a).v < 16777216.0f ? t : a.v;
}
inline Floats ceil(Floats a) { return -floor(-a); }

inline Mask operator<(Floats a, Floats b) { return {a.v < b.v}; }
inline Mask operator>(Floats a, Floats b) { return {a.v > b.v}; }
inline Mask operator<=(Floats a, Floats b) { return {a.v <= b.v}; }
inline Mask operator>=(Floats a, Floats b) { return {a.v >= b.v}; }
inline Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
inline Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
inline bool any(Mask m) {
#if defined(__AVX2__)
    return _mm256_movemask_ps((__m256)m.bits) != 0;
#else
    int64_t words[4];
    memcpy(words, &m.bits, sizeof words);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
#endif
}
// bit b: row b, of the 8 in the lanes, is in m
inline uint32_t row_blocks(Mask m) {
#if defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m.bits));
#else
    uint32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= static_cast<uint32_t>(m.bits[i] & 1) << i;
    return found;
#endif
}
inline bool lane(Mask m, int i) { return m.bits[i] != 0; }
inline int count(Mask m) {
    int total = 0;
    for (int i = 0; i < kLanes; ++i) total -= m.bits[i];
    return total;
}
inline Mask first_lanes(int n) { return {Bits{0, 1, 2, 3, 4, 5, 6, 7} < Bits{n, n, n, n, n, n, n, n}}; }
inline Floats select(Mask m, Floats yes, Floats no) { return m.bits ? yes.v : no.v; }
inline Floats zero_unless(Mask m, Floats a) { return from_bits(m.bits & (Bits)a.v); }
inline Floats product_where(Mask m, Floats a, Floats b) { return zero_unless(m, a * b); }
inline Floats fnma_where(Mask m, Floats a, Floats t) { return t - zero_unless(m, a * t); }  // t - a t where m, else t
inline Mask greater_where(Mask m, Floats a, Floats b) { return m & (a > b); }
inline Mask not_greater_where(Mask m, Floats a, Floats b) { return m & (a <= b); }
inline Floats copy_sign(Floats magnitude, Floats sign) {
    return from_bits(((Bits)magnitude.v & 0x7fffffff) | ((Bits)sign.v & (int32_t)0x80000000));
}

inline Floats load(const float* p) {
    Floats r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
}
inline void store(float* p, Floats a) { memcpy(p, &a.v, sizeof a.v); }
inline Floats load_first(const float* p, int n) {
    if (n >= kLanes) return load(p);
    Floats r = 0.0f;
    for (int i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
}
inline void store_first(float* p, Floats a, int n) {
    if (n >= kLanes) return store(p, a);
    for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline void store_ints(int32_t* p, Floats a) {
    Bits b = __builtin_convertvector(a.v, Bits);
    memcpy(p, &b, sizeof b);
}
inline Floats iota() { return Vec{0, 1, 2, 3, 4, 5, 6, 7}; }
inline Floats load_strided(const float* p, int stride, int n) {
    Floats r = 0.0f;
    for (int i = 0; i < n && i < kLanes; ++i) r.v[i] = p[i * stride];
    return r;
}
inline void store_strided(float* p, int stride, Floats a, int n) {
    for (int i = 0; i < n && i < kLanes; ++i) p[i * stride] = a.v[i];
}

inline Floats scale_by_power(Floats a, Floats whole) {  // a 2^whole; 0 below 2^-126
    Vec n = max(min(whole, 127.0f), -127.0f).v;
    return a * from_bits((__builtin_convertvector(n, Bits) + 127) << 23);
}
// x = whole + part with part in [0, 1)
inline void split_power(Floats x, Floats& whole, Floats& part) { whole = floor(x), part = x - whole; }
// One word a block: bit i says that splat i covers it.
struct BlockWords {
    uint32_t words[32] = {};
    void set(uint32_t blocks, int i) {
        for (int b = 0; b < 32; ++b) words[b] |= (blocks >> b & 1u) << i;
    }
    void store(uint32_t* to) const { memcpy(to, words, sizeof words); }
};
inline Floats exponent(Floats a) { return __builtin_convertvector((((Bits)a.v >> 23) & 255) - 127, Vec); }
inline Floats mantissa(Floats a) { return from_bits(((Bits)a.v & 0x7fffff) | 0x3f800000); }  // in [1, 2)
inline Floats root(Floats a) { return sqrt(a); }  // NaN below 0
inline Floats reciprocal(Floats a) { return 1.0f / a.v; }
// a b - c d without cancellation
inline Floats difference_of_products(Floats a, Floats b, Floats c, Floats d) {
#if defined(__FMA__)
    __m256 cd = _mm256_mul_ps((__m256)c.v, (__m256)d.v);
    return (Vec)_mm256_add_ps(_mm256_fmsub_ps((__m256)a.v, (__m256)b.v, cd), _mm256_fnmadd_ps((__m256)c.v, (__m256)d.v, cd));
#else
    Floats r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>((double)a.v[i] * b.v[i] - (double)c.v[i] * d.v[i]);
    return r;
#endif
}

inline float sum(Floats a) { return ((a.v[0] + a.v[4]) + (a.v[1] + a.v[5])) + ((a.v[2] + a.v[6]) + (a.v[3] + a.v[7])); }

// out[i] = sum of the lanes of a[i], for i < 16
inline void sums16(const Floats* a, float* out) {
#if defined(__AVX2__)
    for (int i = 0; i < 16; i += 8) {
        auto at = [&](int j) { return (__m256)a[i + j].v; };
        __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(at(0), at(1)), _mm256_hadd_ps(at(2), at(3)));
        __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(at(4), at(5)), _mm256_hadd_ps(at(6), at(7)));
        __m256 swapped = _mm256_permute2f128_ps(low, high, 0x21);
        _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_blend_ps(low, high, 0xf0), swapped));
    }
#else
    for (int i = 0; i < 16; ++i) out[i] = sum(a[i]);
#endif
}
// out[c] = column c of n rows, row i in lane i (0 in the lanes from n on); `in` the other way round
inline void load_columns(const float* const* rows, int n, int columns, Floats* out) {
    for (int c = 0; c < columns; ++c) {
        Floats value = 0.0f;
        for (int i = 0; i < n; ++i) value.v[i] = rows[i][c];
        out[c] = value;
    }
}
inline void store_columns(float* const* rows, int n, int columns, const Floats* in) {
    for (int i = 0; i < n; ++i)
        for (int c = 0; c < columns; ++c) rows[i][c] = in[c].v[i];
}
// A block of 8 pixels in an image of 1 or 3 floats a pixel.
inline Floats load_block1(const float* p, int64_t) { return load(p); }
inline void store_block1(float* p, int64_t, Floats a) { store(p, a); }
inline void load_block3(const float* p, int64_t, Floats* c) {
    for (int k = 0; k < 3; ++k)
        for (int i = 0; i < kLanes; ++i) c[k].v[i] = p[3 * i + k];
}
inline void store_block3(float* p, int64_t, const Floats* c) {
    for (int i = 0; i < kLanes; ++i)
        for (int k = 0; k < 3; ++k) p[3 * i + k] = c[k].v[i];
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace sd::SD_ISA
