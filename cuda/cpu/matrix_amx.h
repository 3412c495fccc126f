// Matrix products of wide features in AMX tiles (16 rows of 64 bytes), bfloat16 pairs with float32 sums.
//
// A float32 f becomes one 32-bit word of two bfloat16, high = f rounded and low = (f - high) rounded: together 16 bits of mantissa.
// A tile product multiplies pairs of bfloat16, so a row of 16 words against a tile whose pairs hold one number twice gives
// (high + low) x number, and a second product with that number's low term the rest: two tile products for 16 x 16 x 16 multiply-adds
// to 2^-17 a factor (kExact), one where the second is left out (8 bits of mantissa in the weights and the image's gradient).
// With the pairs inside a word the rows of splats are used as they lie, both as the right-hand side (blend) and as the left-hand
// side (dots): nothing is interleaved or transposed but weights and gradients, once per block.
//
// Shapes are those of matrix_vector.h: a block is 16 pixels. Bound: 16 cycles a tile product; the copies that gather the rows of a
// list into tiles run beside them. Needs the system's permission (matrix.cpp). The tile registers are named here and nowhere else.
#pragma once
#include "raster_wide_lists.h"

#if defined(SD_WITH_AMX) && defined(__AVX512F__)
#define SD_HAS_AMX

namespace sd::SD_ISA {

#define SD_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define SD_TILE_LOAD(t, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define SD_TILE_STORE(t, to, stride) \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define SD_TILE_DOT(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")

constexpr int kTileFloats = 256;
constexpr int kPanelTiles = kPanelChannels / 16;
static_assert(kLanes == 16, "a block is a row of tiles");

inline __m512i bfloat16_bits(__m512 v) {  // nearest, in the upper half of each word
    __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
    return _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
struct Terms {
    __m512i high, low;
    explicit Terms(Floats f) : high(bfloat16_bits(f.v)), low(bfloat16_bits(_mm512_sub_ps(f.v, _mm512_castsi512_ps(high)))) {}
    Floats pair() const { return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_srli_epi32(high, 16))); }
    static Floats twice(__m512i term) { return _mm512_castsi512_ps(_mm512_or_si512(term, _mm512_srli_epi32(term, 16))); }
};

template <bool kExact> struct AmxProducts {
    struct Workspace {
        alignas(64) float high[kWideBatch / 16][kTileFloats], low[kWideBatch / 16][kTileFloats];  // weights, each term twice
        float staged[2][2 * kPanelTiles][kTileFloats];                                    // rows of a list
        float v_high[kMaxWidth / 16][kTileFloats], v_low[kMaxWidth / 16][kTileFloats];    // [D][16 pixels], each term twice
        float v_pairs[kMaxWidth / 16][kTileFloats];                                       // [16 pixels][16 channels] of each panel
        float result[kPanelTiles][kTileFloats];
    };

    struct Session {  // tile shapes are a state of the thread
        __attribute__((target("amx-tile"))) Session() {
            struct alignas(64) {
                uint8_t palette = 1, start_row = 0, reserved[14] = {};
                uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
                uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
            } shape;
            asm volatile("ldtilecfg (%0)" ::"r"(&shape) : "memory");
        }
        __attribute__((target("amx-tile"))) ~Session() { asm volatile("tilerelease" ::: "memory"); }
        Session(const Session&) = delete;
        Session& operator=(const Session&) = delete;
    };

    // What the products make of a weight or of a gradient.
    static Floats round_operand(Floats value) {
        Terms terms(value);
        Floats high = _mm512_castsi512_ps(terms.high);
        return kExact ? high + Floats(_mm512_castsi512_ps(terms.low)) : high;
    }
    static void convert_row(const float* from, int n, float* to) {
        for (int c = 0; c < (n + 15) / 16 * 16; c += 16) store(to + c, Terms(load_first(from + c, least(16, n - c))).pair());
    }

    // Rows of 16 splats of a list from entry e on, `tiles` tiles of a panel.
    static void stage(const BlockList& list, int e, const float* panel, int stride, int tiles, float (*to)[kTileFloats]) {
        for (int r = 0; r < 16; ++r) {
            const float* row = panel + list.index[e + r] * stride;
            for (int j = 0; j < tiles; ++j) store(to[j] + r * 16, load(row + j * 16));
        }
    }
    // The weights of a list as left-hand sides: [16 pixels][16 splats], or [16 splats][16 pixels] when not transposed.
    static void split_weights(const BlockList& list, bool transposed, Workspace& work) {
        for (int e = 0; e < list.count; e += 16) {
            __m512 w[16];
            for (int r = 0; r < 16; ++r) w[r] = load(list.weights + (e + r) * 16).v;
            if (transposed) detail::transpose16(w);
            for (int r = 0; r < 16; ++r) {
                Terms terms((Floats(w[r])));
                store(work.high[e / 16] + r * 16, Terms::twice(terms.high));
                if (kExact) store(work.low[e / 16] + r * 16, Terms::twice(terms.low));
            }
        }
    }

    template <int kTiles>
    __attribute__((target("amx-tile,amx-bf16"))) static void blend_panel(const BlockList& list, const float* panel, Workspace& work,
                                                                         float* out, int64_t out_bytes, bool fresh) {
        const int stride = kTiles * 16;
        if (fresh) {
            SD_TILE_ZERO(0);
            if (kTiles > 1) SD_TILE_ZERO(1);
            if (kTiles > 2) SD_TILE_ZERO(2);
            if (kTiles > 3) SD_TILE_ZERO(3);
        } else {
            SD_TILE_LOAD(0, out, out_bytes);
            if (kTiles > 1) SD_TILE_LOAD(1, out + 16, out_bytes);
            if (kTiles > 2) SD_TILE_LOAD(2, out + 32, out_bytes);
            if (kTiles > 3) SD_TILE_LOAD(3, out + 48, out_bytes);
        }
        stage(list, 0, panel, stride, kTiles, work.staged[0]);
        for (int e = 0, turn = 0; e < list.count; e += 16, turn ^= 1) {
            if (e + 16 < list.count) stage(list, e + 16, panel, stride, kTiles, work.staged[turn ^ 1]);
            float(*rows)[kTileFloats] = work.staged[turn];
            SD_TILE_LOAD(4, work.high[e / 16], 64);
            if (kExact) SD_TILE_LOAD(5, work.low[e / 16], 64);
            SD_TILE_LOAD(6, rows[0], 64);
            SD_TILE_DOT(0, 4, 6);
            if (kExact) SD_TILE_DOT(0, 5, 6);
            if (kTiles > 1) SD_TILE_LOAD(7, rows[1], 64);
            if (kTiles > 1) SD_TILE_DOT(1, 4, 7);
            if (kTiles > 1 && kExact) SD_TILE_DOT(1, 5, 7);
            if (kTiles > 2) SD_TILE_LOAD(6, rows[2], 64);
            if (kTiles > 2) SD_TILE_DOT(2, 4, 6);
            if (kTiles > 2 && kExact) SD_TILE_DOT(2, 5, 6);
            if (kTiles > 3) SD_TILE_LOAD(7, rows[3], 64);
            if (kTiles > 3) SD_TILE_DOT(3, 4, 7);
            if (kTiles > 3 && kExact) SD_TILE_DOT(3, 5, 7);
        }
        SD_TILE_STORE(0, out, out_bytes);
        if (kTiles > 1) SD_TILE_STORE(1, out + 16, out_bytes);
        if (kTiles > 2) SD_TILE_STORE(2, out + 32, out_bytes);
        if (kTiles > 3) SD_TILE_STORE(3, out + 48, out_bytes);
    }

    static void blend(const BlockList& list, const FeatureRows& rows, Workspace& work, float* out, bool fresh) {
        split_weights(list, true, work);
        const int64_t bytes = int64_t(rows.width) * 4;
        for (int c = 0; c < rows.width; c += kPanelChannels) {
            const float* panel = rows.panel(c);
            switch (rows.panel_width(c) / 16) {
                case 1: blend_panel<1>(list, panel, work, out + c, bytes, fresh); break;
                case 2: blend_panel<2>(list, panel, work, out + c, bytes, fresh); break;
                case 3: blend_panel<3>(list, panel, work, out + c, bytes, fresh); break;
                default: blend_panel<4>(list, panel, work, out + c, bytes, fresh); break;
            }
        }
    }

    // v [16, width] of the block, for dots and pull.
    static void prepare(const float* v, int width, Workspace& work) {
        for (int c = 0; c < width; c += 16) {
            __m512 rows[16];
            for (int p = 0; p < 16; ++p) {
                rows[p] = load(v + p * width + c).v;
                store(work.v_pairs[c / 16] + p * 16, Terms(Floats(rows[p])).pair());
            }
            detail::transpose16(rows);
            for (int k = 0; k < 16; ++k) {
                Terms terms((Floats(rows[k])));
                store(work.v_high[c / 16] + k * 16, Terms::twice(terms.high));
                if (kExact) store(work.v_low[c / 16] + k * 16, Terms::twice(terms.low));
            }
        }
    }

    // Entries e .. e + 31 (or + 15) of a list against the block: sums of the two terms in tiles of their own, which do not wait.
    template <bool kTwo>
    __attribute__((target("amx-tile,amx-bf16"))) static void dots_of(const BlockList& list, int e, const FeatureRows& rows,
                                                                     Workspace& work, float* out) {
        SD_TILE_ZERO(0);
        SD_TILE_ZERO(1);
        SD_TILE_ZERO(2);
        SD_TILE_ZERO(3);
        for (int c = 0; c < rows.width; c += kPanelChannels) {
            int stride = rows.panel_width(c), tiles = stride / 16;
            float(*staged)[kTileFloats] = work.staged[c / kPanelChannels & 1];
            stage(list, e, rows.panel(c), stride, tiles, staged);
            if (kTwo) stage(list, e + 16, rows.panel(c), stride, tiles, staged + kPanelTiles);
            for (int j = 0; j < tiles; ++j) {
                SD_TILE_LOAD(4, staged[j], 64);
                if (kTwo) SD_TILE_LOAD(5, staged[kPanelTiles + j], 64);
                SD_TILE_LOAD(6, work.v_high[c / 16 + j], 64);
                SD_TILE_DOT(0, 4, 6);
                if (kTwo) SD_TILE_DOT(1, 5, 6);
                if (kExact) SD_TILE_LOAD(7, work.v_low[c / 16 + j], 64);
                if (kExact) SD_TILE_DOT(2, 4, 7);
                if (kExact && kTwo) SD_TILE_DOT(3, 5, 7);
            }
        }
        SD_TILE_STORE(0, out, 64);
        if (kTwo) SD_TILE_STORE(1, out + kTileFloats, 64);
        if (!kExact) return;
        SD_TILE_STORE(2, work.result[0], 64);
        if (kTwo) SD_TILE_STORE(3, work.result[1], 64);
        for (int i = 0; i < (kTwo ? 2 : 1) * kTileFloats; i += 16) store(out + i, load(out + i) + load(work.result[0] + i));
    }
    static void dots(const BlockList& list, const FeatureRows& rows, Workspace& work, float* out) {
        int e = 0;
        for (; e + 16 < list.count; e += 32) dots_of<true>(list, e, rows, work, out + e * 16);
        if (e < list.count) dots_of<false>(list, e, rows, work, out + e * 16);
    }

    // v_feature of 16 splats: weights in tiles 4 and 5, four tiles of channels at a time.
    template <int kTiles>
    __attribute__((target("amx-tile,amx-bf16"))) static void pull_panel(const float (*v)[kTileFloats], Workspace& work) {
        SD_TILE_ZERO(0);
        SD_TILE_LOAD(6, v[0], 64);
        SD_TILE_DOT(0, 4, 6);
        if (kExact) SD_TILE_DOT(0, 5, 6);
        if (kTiles > 1) SD_TILE_ZERO(1);
        if (kTiles > 1) SD_TILE_LOAD(7, v[1], 64);
        if (kTiles > 1) SD_TILE_DOT(1, 4, 7);
        if (kTiles > 1 && kExact) SD_TILE_DOT(1, 5, 7);
        if (kTiles > 2) SD_TILE_ZERO(2);
        if (kTiles > 2) SD_TILE_LOAD(6, v[2], 64);
        if (kTiles > 2) SD_TILE_DOT(2, 4, 6);
        if (kTiles > 2 && kExact) SD_TILE_DOT(2, 5, 6);
        if (kTiles > 3) SD_TILE_ZERO(3);
        if (kTiles > 3) SD_TILE_LOAD(7, v[3], 64);
        if (kTiles > 3) SD_TILE_DOT(3, 4, 7);
        if (kTiles > 3 && kExact) SD_TILE_DOT(3, 5, 7);
        SD_TILE_STORE(0, work.result[0], 64);
        if (kTiles > 1) SD_TILE_STORE(1, work.result[1], 64);
        if (kTiles > 2) SD_TILE_STORE(2, work.result[2], 64);
        if (kTiles > 3) SD_TILE_STORE(3, work.result[3], 64);
    }
    __attribute__((target("amx-tile,amx-bf16"))) static void pull(const BlockList& list, const float*, int width, Workspace& work,
                                                                  float* slots) {
        split_weights(list, false, work);
        for (int e = 0; e < list.count; e += 16) {
            SD_TILE_LOAD(4, work.high[e / 16], 64);
            if (kExact) SD_TILE_LOAD(5, work.low[e / 16], 64);
            for (int c = 0; c < width; c += kPanelChannels) {
                int tiles = least(kPanelChannels, width - c) / 16;
                switch (tiles) {
                    case 1: pull_panel<1>(work.v_pairs + c / 16, work); break;
                    case 2: pull_panel<2>(work.v_pairs + c / 16, work); break;
                    case 3: pull_panel<3>(work.v_pairs + c / 16, work); break;
                    default: pull_panel<4>(work.v_pairs + c / 16, work); break;
                }
                for (int r = 0; r < least(16, list.count - e); ++r) {
                    float* slot = slots + int64_t(list.index[e + r]) * width + c;
                    for (int j = 0; j < tiles; ++j)
                        store(slot + j * 16, load(slot + j * 16) + load(work.result[j] + r * 16));
                }
            }
        }
    }
};

#undef SD_TILE_ZERO
#undef SD_TILE_LOAD
#undef SD_TILE_STORE
#undef SD_TILE_DOT

}  // namespace sd::SD_ISA

#endif
