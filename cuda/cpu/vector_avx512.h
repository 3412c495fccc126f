// Sixteen floats in one AVX-512 register (F, VL, DQ, BW). Same interface as vector_generic.h; included through vector.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace sd::SD_ISA {

constexpr int kLanes = 16;

struct Mask {
    __mmask16 bits;
};

struct Floats {
    __m512 v;
    Floats() = default;
    Floats(__m512 value) : v(value) {}
    Floats(float value) : v(_mm512_set1_ps(value)) {}
};

inline Floats operator+(Floats a, Floats b) { return _mm512_add_ps(a.v, b.v); }
inline Floats operator-(Floats a, Floats b) { return _mm512_sub_ps(a.v, b.v); }
inline Floats operator*(Floats a, Floats b) { return _mm512_mul_ps(a.v, b.v); }
inline Floats operator/(Floats a, Floats b) { return _mm512_div_ps(a.v, b.v); }
inline Floats operator-(Floats a) { return _mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f)); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }  // c - a b
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a.v, b.v); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a.v, b.v); }
inline Floats sqrt(Floats a) { return _mm512_sqrt_ps(a.v); }
inline Floats floor(Floats a) { return _mm512_roundscale_ps(a.v, 9); }
inline Floats ceil(Floats a) { return _mm512_roundscale_ps(a.v, 10); }
inline Floats abs(Floats a) { return _mm512_abs_ps(a.v); }

inline Mask operator<(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator>(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator<=(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator>=(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits | b.bits)}; }
inline bool any(Mask m) { return m.bits != 0; }
// bit b: row 2 b or 2 b + 1, of the 16 in the lanes, is in m
inline uint32_t row_blocks(Mask m) { return _pext_u32(m.bits | m.bits >> 1, 0x5555); }
inline bool lane(Mask m, int i) { return (m.bits >> i) & 1; }
inline int count(Mask m) { return __builtin_popcount(m.bits); }
inline Mask first_lanes(int n) { return {static_cast<__mmask16>((1u << n) - 1)}; }
inline Floats select(Mask m, Floats yes, Floats no) { return _mm512_mask_blend_ps(m.bits, no.v, yes.v); }
inline Floats zero_unless(Mask m, Floats a) { return _mm512_maskz_mov_ps(m.bits, a.v); }
inline Floats fnma_where(Mask m, Floats a, Floats t) { return _mm512_mask3_fnmadd_ps(a.v, t.v, t.v, m.bits); }  // t - a t where m, else t
inline Floats product_where(Mask m, Floats a, Floats b) { return _mm512_maskz_mul_ps(m.bits, a.v, b.v); }   // else 0
inline Mask greater_where(Mask m, Floats a, Floats b) { return {_mm512_mask_cmp_ps_mask(m.bits, a.v, b.v, _CMP_GT_OQ)}; }
inline Mask not_greater_where(Mask m, Floats a, Floats b) { return {_mm512_mask_cmp_ps_mask(m.bits, a.v, b.v, _CMP_LE_OQ)}; }
inline Floats copy_sign(Floats magnitude, Floats sign) {
    __m512 bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_and_ps(bit, sign.v), _mm512_andnot_ps(bit, magnitude.v));
}

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline Floats load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n).bits, p); }
inline void store_first(float* p, Floats a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n).bits, a.v); }
inline void store_ints(int32_t* p, Floats a) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(a.v)); }
inline Floats iota() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

inline __m512i strides(int stride) {
    return _mm512_mullo_epi32(_mm512_set1_epi32(stride), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
// p[0], p[stride], ..; strides 2 to 4 by permutations, which read nothing beyond the last element and beat a gather threefold
inline Floats load_strided(const float* p, int stride, int n) {
    if (n < kLanes || stride > 4)
        return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), first_lanes(n).bits, strides(stride), p, 4);
    __m512i at = strides(stride);
    auto part = [&](int i) {
        int left = 15 * stride + 1 - 16 * i;  // floats up to the last element
        return _mm512_maskz_loadu_ps(left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1), p + 16 * i);
    };
    __m512 low = _mm512_permutex2var_ps(part(0), at, part(1));  // right where at < 32
    if (stride == 2) return low;
    __m512 high = stride == 3 ? _mm512_permutexvar_ps(at, part(2)) : _mm512_permutex2var_ps(part(2), at, part(3));
    return _mm512_mask_blend_ps(_mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32)), low, high);
}
inline void store_strided(float* p, int stride, Floats a, int n) {  // scalar stores: scatters are slower on every processor so far
    alignas(64) float lanes[kLanes];
    _mm512_store_ps(lanes, a.v);
    if (n == kLanes)
        for (int i = 0; i < kLanes; ++i) p[i * stride] = lanes[i];
    else
        for (int i = 0; i < n; ++i) p[i * stride] = lanes[i];
}

inline Floats scale_by_power(Floats a, Floats whole) { return _mm512_scalef_ps(a.v, whole.v); }  // a 2^whole
// x = whole + part with part in [0, 1); scale_by_power rounds `whole` down itself, so x will do
inline void split_power(Floats x, Floats& whole, Floats& part) { whole = x, part = _mm512_reduce_ps(x.v, 9); }
// One word a block: bit i says that splat i covers it.
struct BlockWords {
    __m512i words = _mm512_setzero_si512();
    void set(uint32_t blocks, int i) {
        words = _mm512_mask_or_epi32(words, static_cast<__mmask16>(blocks), words, _mm512_set1_epi32(1u << i));
    }
    void store(uint32_t* to) const { _mm512_storeu_si512(to, words); }
};
inline Floats exponent(Floats a) { return _mm512_getexp_ps(a.v); }
inline Floats mantissa(Floats a) { return _mm512_getmant_ps(a.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero); }  // in [1, 2)
inline Floats root(Floats a) { return _mm512_mul_ps(a.v, _mm512_rsqrt14_ps(a.v)); }  // of a > 0, to 14 bits; else NaN
inline Floats reciprocal(Floats a) {  // one Newton step on 14 bits
    __m512 r = _mm512_rcp14_ps(a.v);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)));
}
// a b - c d without cancellation (Kahan; needs a true fused multiply-add)
inline Floats difference_of_products(Floats a, Floats b, Floats c, Floats d) {
    Floats cd = c * d;
    return fma(a, b, -cd) + fnma(c, d, cd);
}

inline float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }

namespace detail {
inline __m512 pair(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
inline __m512 quad(const Floats* a) {  // each 128-bit group: partial sums of a[0], a[1], a[2], a[3]
    __m512d x = _mm512_castps_pd(pair(a[0].v, a[1].v)), y = _mm512_castps_pd(pair(a[2].v, a[3].v));
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
}  // namespace detail

// out[i] = sum of the lanes of a[i], for i < 16
inline void sums16(const Floats* a, float* out) {
    __m512 q0 = detail::quad(a), q1 = detail::quad(a + 4), q2 = detail::quad(a + 8), q3 = detail::quad(a + 12);
    __m512 t = _mm512_add_ps(_mm512_shuffle_f32x4(q0, q1, 0x88), _mm512_shuffle_f32x4(q0, q1, 0xdd));
    __m512 u = _mm512_add_ps(_mm512_shuffle_f32x4(q2, q3, 0x88), _mm512_shuffle_f32x4(q2, q3, 0xdd));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(t, u, 0x88), _mm512_shuffle_f32x4(t, u, 0xdd)));
}
namespace detail {
inline void transpose16(__m512* r) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {  // 4x4 blocks within 128-bit groups
        __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44), t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44), t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // 4x4 of the groups
        __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88), r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88), r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}
}  // namespace detail

// out[c] = column c of n rows, row i in lane i (0 in the lanes from n on); `in` the other way round
inline void load_columns(const float* const* rows, int n, int columns, Floats* out) {
    for (int c = 0; c < columns; c += 16) {
        int width = columns - c < 16 ? columns - c : 16;
        __m512 block[16];
        for (int i = 0; i < 16; ++i)
            block[i] = i < n ? _mm512_maskz_loadu_ps(first_lanes(width).bits, rows[i] + c) : _mm512_setzero_ps();
        detail::transpose16(block);
        for (int k = 0; k < width; ++k) out[c + k] = block[k];
    }
}
inline void store_columns(float* const* rows, int n, int columns, const Floats* in) {
    for (int c = 0; c < columns; c += 16) {
        int width = columns - c < 16 ? columns - c : 16;
        __m512 block[16];
        for (int k = 0; k < 16; ++k) block[k] = k < width ? in[c + k].v : _mm512_setzero_ps();
        detail::transpose16(block);
        for (int i = 0; i < n; ++i) _mm512_mask_storeu_ps(rows[i] + c, first_lanes(width).bits, block[i]);
    }
}
// A block of 8 x 2 pixels in an image of `channels` floats a pixel, rows `stride` floats apart; lanes row by row. 1 or 3 channels.
inline Floats load_block1(const float* p, int64_t stride) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(p + stride), 1);
}
inline void store_block1(float* p, int64_t stride, Floats a) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256(a.v)), _mm256_storeu_ps(p + stride, _mm512_extractf32x8_ps(a.v, 1));
}
inline void load_block3(const float* p, int64_t stride, Floats* c) {
    __m512 x = _mm512_loadu_ps(p), z = _mm512_loadu_ps(p + stride + 8);  // 16 floats; 8 and 8; 16
    __m512 y = load_block1(p + 16, stride - 16).v;
    __m512i at = strides(3);
    for (int k = 0; k < 3; ++k, at = _mm512_add_epi32(at, _mm512_set1_epi32(1))) {
        __m512 low = _mm512_permutex2var_ps(x, at, y);  // right where at < 32
        c[k] = _mm512_mask_permutexvar_ps(low, _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(32)), at, z);
    }
}
inline void store_block3(float* p, int64_t stride, const Floats* c) {  // float j belongs to pixel j / 3, channel j % 3
    auto merge = [&](__m512i low, __mmask16 third, __m512i pixel) {
        return _mm512_mask_permutexvar_ps(_mm512_permutex2var_ps(c[0].v, low, c[1].v), third, pixel, c[2].v);
    };
    __m512 part0 = merge(_mm512_setr_epi32(0, 16, 0, 1, 17, 1, 2, 18, 2, 3, 19, 3, 4, 20, 4, 5), 0x4924,
                         _mm512_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5));
    __m512 part1 = merge(_mm512_setr_epi32(21, 5, 6, 22, 6, 7, 23, 7, 8, 24, 8, 9, 25, 9, 10, 26), 0x2492,
                         _mm512_setr_epi32(5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10));
    __m512 part2 = merge(_mm512_setr_epi32(10, 11, 27, 11, 12, 28, 12, 13, 29, 13, 14, 30, 14, 15, 31, 15), 0x9249,
                         _mm512_setr_epi32(10, 11, 11, 11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15, 15));
    _mm512_storeu_ps(p, part0), _mm512_storeu_ps(p + stride + 8, part2);
    store_block1(p + 16, stride - 16, part1);
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace sd::SD_ISA
