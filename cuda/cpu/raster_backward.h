// Backward tile rasterizer: gradients of every splat from the gradient of the image, front to back once more.
//
// Per pixel, rest = (what is still to be blended) . v starts as image . v_image + alpha v_alpha, and for splat j with weight w,
// colour c and cv = c . v_image + v_alpha:   rest -= w cv,   dL/d(ln alpha_j) = w cv - alpha_j / (1 - alpha_j) rest.
// So nothing but the two images is kept from the forward pass. Six moments of dL/d(ln alpha) in (dx, dy) and the channel sums
// are all a splat needs; the chain rule to centre, conic and opacity is done once per Gaussian.
//
// Work unit: one tile. No atomics: each pair owns a slot of 16 or 32 floats; then each Gaussian adds its slots in tile order,
// so the bytes do not depend on the number of threads. On request the gradient of a pixel is shortened until no channel exceeds
// a bound (pixel-wise clipping, PGC), and sum |dL/d(centre)| over pixels is kept beside the gradient (AbsGS). Bytes: 64 read and 64 written per pair, read once more. Bound: vector
// issue, about 45 operations per block and splat.
#pragma once
#include "splat.h"

namespace sd::SD_ISA {

enum Moment { kOne, kX, kY, kXX, kXY, kYY, kMoments };

// kAbs: two more sums, |dL/d(centre)| over pixels, in the slot after the channels
template <int kWidth, bool kAbs> constexpr int slot_floats() { return (kMoments + kWidth + (kAbs ? 2 : 0) + 15) / 16 * 16; }

template <int kWidth> struct TileGradient {
    Floats v[kWidth][kBlocks];
    Floats v_alpha[kBlocks], rest[kBlocks];
};

template <int kWidth, bool kAbs> struct SplatSums {
    Floats s[slot_floats<kWidth, kAbs>()];
    SplatSums() {
        for (auto& value : s) value = 0.0f;
    }
};

template <int kWidth, bool kAbs>
inline void pull_half(const Splat& s, const float* color, const TileFrame& frame, int half, const Cover& cover,
                      const sd_limits& limits, Floats lane_column, Floats lane_row, Transmittance& live,
                      TileGradient<kWidth>& grad, SplatSums<kWidth, kAbs>& sums) {
    HalfExponent e(s, frame, half, cover.first, lane_column, lane_row);
    const Floats alpha_min = limits.alpha_min, alpha_max = limits.alpha_max, t_min = limits.transmittance_min;
    Floats one = 0.0f, y = 0.0f, yy = 0.0f;
    for (int r = cover.first; r <= cover.last; ++r, e.step()) {
        int block = half * kBlockRows + r;
        Floats raw = e.alpha(), alpha = min(raw, alpha_max), t = live.t[block];
        Mask counts = alpha >= alpha_min;
        Floats w = alpha * t, next = t - w;
        Mask drawn = counts & (next > t_min), finished = and_not(counts, drawn);
        live.t[block] = negate_where(finished, select(drawn, next, t), t);
        w = zero_unless(drawn, w);
        Floats cv = grad.v_alpha[block];
        for (int k = 0; k < kWidth; ++k) {
            cv = fma(color[k], grad.v[k][block], cv);
            sums.s[kMoments + k] = fma(w, grad.v[k][block], sums.s[kMoments + k]);
        }
        Floats share = w * cv, rest = grad.rest[block] - share;
        grad.rest[block] = rest;
        Floats pull = fnma(alpha * reciprocal(1.0f - alpha), rest, share);
        pull = zero_unless(drawn & (raw <= alpha_max), pull);  // a clamped alpha passes no gradient
        Floats pull_y = pull * e.dy;
        one = one + pull, y = y + pull_y, yy = fma(pull_y, e.dy, yy);
        if (kAbs) {  // the record's conic is scaled by -log2(e) / 2 and -log2(e)
            Floats by_x = fma(Floats(s.qxy), e.dy, (2.0f * s.qxx) * e.dx), by_y = fma(e.qyy + e.qyy, e.dy, e.linear);
            sums.s[kMoments + kWidth] = sums.s[kMoments + kWidth] + abs(pull * by_x);
            sums.s[kMoments + kWidth + 1] = sums.s[kMoments + kWidth + 1] + abs(pull * by_y);
        }
    }
    Floats x = one * e.dx;
    sums.s[kOne] = sums.s[kOne] + one, sums.s[kX] = sums.s[kX] + x, sums.s[kY] = sums.s[kY] + y;
    sums.s[kXX] = fma(x, e.dx, sums.s[kXX]), sums.s[kXY] = fma(y, e.dx, sums.s[kXY]), sums.s[kYY] = sums.s[kYY] + yy;
}

template <int kWidth, bool kAbs> inline void clear_slot(float* slot) {
    for (int k = 0; k < slot_floats<kWidth, kAbs>(); k += kLanes) store(slot + k, 0.0f);
}

template <int kWidth, bool kAbs>
inline void pull_tile(const Splat* splats, const float* wide, const int32_t* ids, int count, const TileFrame& frame,
                      const sd_limits& limits, Transmittance& live, TileGradient<kWidth>& grad, float* slots) {
    constexpr int kSlot = slot_floats<kWidth, kAbs>();
    const Floats lane_column = lane_columns(), lane_row = lane_rows();
    int k = 0;
    for (bool alive = live.shrink(); k < count && alive; ++k) {
        int64_t ahead = ids[least(k + kLookAhead, count - 1)];
        prefetch(&splats[ahead]);
        if (kWidth > 4) prefetch(wide + ahead * kWidth);
        const Splat& s = splats[ids[k]];
        Cover cover(s, frame, live);
        if (cover.empty()) {
            clear_slot<kWidth, kAbs>(slots + int64_t(k) * kSlot);
        } else {
            const float* color = kWidth > 4 ? wide + int64_t(ids[k]) * kWidth : s.color;
            SplatSums<kWidth, kAbs> sums;
            for (int half = 0; half < kHalves; ++half)
                if (Cover::has(s, frame, half))
                    pull_half<kWidth, kAbs>(s, color, frame, half, cover, limits, lane_column, lane_row, live, grad, sums);
            for (int part = 0; part < kSlot; part += 16) sums16(sums.s + part, slots + int64_t(k) * kSlot + part);
        }
        if (k % kWindowPeriod == kWindowPeriod - 1) alive = live.shrink();
    }
    for (; k < count; ++k) clear_slot<kWidth, kAbs>(slots + int64_t(k) * kSlot);
}

struct ImageGradient {
    const float *image, *alpha, *v_image, *v_alpha;  // v_alpha may be null
    float bound;                                     // of |v_image| per channel; infinite: none
};

// Factor that brings the largest channel of n pixels' gradients down to the bound (PGC, ICLR 2024): directions are kept.
inline Floats clip_factor(const float* v, int channels, int n, float bound) {
    Floats largest = 0.0f;
    for (int k = 0; k < channels; ++k) largest = max(largest, abs(load_strided(v + k, channels, n)));
    return select(largest > bound, bound / max(largest, 1e-30f), Floats(1.0f));
}

// Loads v and rest of one tile; returns in background[k] the tile's sum of transmittance * v_image.
template <int kWidth>
inline void load_gradient(const TileFrame& frame, const sd_image& image, Channels chosen, const ImageGradient& from,
                          TileGradient<kWidth>& grad, float* background) {
    alignas(64) float v[kWidth][kBlocks][kLanes] = {}, v_alpha[kBlocks][kLanes] = {}, rest[kBlocks][kLanes] = {};
    bool with_alpha = from.v_alpha && chosen.first == 0, clipped = !__builtin_isinf(from.bound);
    const int stride = image.channels;
    Floats sums[kWidth];
    for (auto& value : sums) value = 0.0f;
    for (int row = 0; row < frame.rows; ++row)
        for (int column = 0; column < frame.columns; column += kLanes) {
            int n = least(kLanes, frame.columns - column);
            int64_t pixel = int64_t(frame.y0 + row) * image.width + frame.x0 + column, at = pixel * stride + chosen.first;
            Floats total = 0.0f, alpha = load_first(from.alpha + pixel, n), t = 1.0f - alpha, factor = 1.0f;
            float shown[kLanes];
            for (int l = 0; l < n; ++l) shown[l] = !image.mask || image.mask[pixel + l] ? 1.0f : 0.0f;
            if (clipped) factor = clip_factor(from.v_image + pixel * stride, stride, n, from.bound);
            for (int k = 0; k < chosen.count; ++k) {
                Floats value = load_strided(from.v_image + at + k, stride, n) * factor;
                put_row(v[k], column, row, zero_unless(load_first(shown, n) > 0.0f, value));
                total = fma(value, load_strided(from.image + at + k, stride, n), total);
                sums[k] = fma(value, t, sums[k]);
            }
            if (with_alpha) {
                Floats value = load_first(from.v_alpha + pixel, n);
                put_row(v_alpha, column, row, value);
                total = fma(value, alpha, total);
            }
            put_row(rest, column, row, total);
        }
    for (int b = 0; b < kBlocks; ++b) {
        for (int k = 0; k < kWidth; ++k) grad.v[k][b] = load(v[k][b]);
        grad.v_alpha[b] = load(v_alpha[b]), grad.rest[b] = load(rest[b]);
    }
    for (int k = 0; k < chosen.count && background; ++k) background[chosen.first + k] = sum(sums[k]);
}

// pair_rank[offset[g] ..]: the pairs of Gaussian g in tile order. A counting sort on one thread, beside the tiles.
inline void index_pairs(const int32_t* pair_gaussian, int64_t pairs, int64_t gaussians, int32_t* offset, int32_t* pair_rank) {
    for (int64_t g = 0; g <= gaussians; ++g) offset[g] = 0;
    for (int64_t m = 0; m < pairs; ++m) ++offset[pair_gaussian[m]];
    int32_t total = 0;
    for (int64_t g = 0; g < gaussians; ++g) offset[g] = total += offset[g];  // ends of the lists
    offset[gaussians] = total;
    for (int64_t m = pairs - 1; m >= 0; --m) pair_rank[--offset[pair_gaussian[m]]] = static_cast<int32_t>(m);
}

struct ScreenPull {
    float *means2d, *conics, *opacities2d, *features;  // features may be null
    float* absolute;                                   // [N, 2] sum over pixels of |dL/d(centre)|, or null
};

// Adds up the slots of each Gaussian and applies the chain rule; `first` clears the geometry gradients of an earlier pass.
template <int kWidth, bool kAbs>
inline void gather_slots(const sd_screen& screen, const sd_image& image, Channels chosen, const int32_t* offset,
                         const int32_t* pair_rank, const float* slots, const ScreenPull& out) {
    constexpr int kSlot = slot_floats<kWidth, kAbs>();
    int64_t pairs = offset[screen.count];
    parallel_chunks(screen.count, 2048, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t g = begin; g < end; ++g) {
            Floats sum[kSlot / kLanes];
            for (auto& value : sum) value = 0.0f;
            for (int32_t i = offset[g]; i < offset[g + 1]; ++i) {
                prefetch(slots + int64_t(pair_rank[least<int64_t>(i + 12, pairs - 1)]) * kSlot);
                const float* slot = slots + int64_t(pair_rank[i]) * kSlot;
                for (int k = 0; k < kSlot / kLanes; ++k) sum[k] = sum[k] + load(slot + k * kLanes);
            }
            alignas(64) float s[kSlot];
            for (int k = 0; k < kSlot / kLanes; ++k) store(s + k * kLanes, sum[k]);
            float a = screen.conics[3 * g], b = screen.conics[3 * g + 1], c = screen.conics[3 * g + 2];
            float opacity = screen.opacities2d[g];
            float moved[6] = {a * s[kX] + b * s[kY], b * s[kX] + c * s[kY], -0.5f * s[kXX], -s[kXY], -0.5f * s[kYY],
                              opacity > 0.0f ? s[kOne] / opacity : 0.0f};
            float* to[6] = {&out.means2d[2 * g], &out.means2d[2 * g + 1], &out.conics[3 * g], &out.conics[3 * g + 1],
                            &out.conics[3 * g + 2], &out.opacities2d[g]};
            for (int k = 0; k < 6; ++k) *to[k] = chosen.first == 0 ? moved[k] : *to[k] + moved[k];
            for (int k = 0; k < chosen.count && out.features; ++k)
                out.features[g * image.channels + chosen.first + k] = s[kMoments + k];
            for (int k = 0; k < 2 && kAbs; ++k) out.absolute[2 * g + k] = kLn2 * s[kMoments + kWidth + k];
        }
    });
}

template <int kWidth, bool kAbs>
inline void pull_image(const sd_screen& screen, const sd_image& image, Channels chosen, const sd_limits& limits,
                       const ImageGradient& from, const Splat* splats, const float* wide, Scratch& scratch, float* tile_background,
                       const ScreenPull& out) {
    TileGrid grid(image.width, image.height);
    int64_t pairs = image.tile_offsets[grid.tiles];
    float* slots = scratch.array<float>(2, pairs * slot_floats<kWidth, kAbs>());
    int32_t* offset = scratch.array<int32_t>(3, screen.count + 1);
    int32_t* pair_rank = scratch.array<int32_t>(4, pairs);
    parallel_items(grid.tiles + 1, [&](int64_t item, int) {
        if (item == 0) {
            if (chosen.first == 0) index_pairs(image.pair_gaussian, pairs, screen.count, offset, pair_rank);
            return;
        }
        int64_t tile = item - 1;
        TileFrame frame(grid, static_cast<int>(tile));
        TileGradient<kWidth> grad;
        load_gradient<kWidth>(frame, image, chosen, from, grad,
                              tile_background ? tile_background + tile * image.channels : nullptr);
        Transmittance live(frame, image);
        int32_t begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        pull_tile<kWidth, kAbs>(splats, wide, image.pair_gaussian + begin, end - begin, frame, limits, live, grad,
                          slots + int64_t(begin) * slot_floats<kWidth, kAbs>());
    });
    gather_slots<kWidth, kAbs>(screen, image, chosen, offset, pair_rank, slots, out);
}

inline void raster_backward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, const ImageGradient& from,
                            const ScreenPull& out, float* v_background) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    Splat* splats = scratch.array<Splat>(0, screen.count);
    float* tile_background = v_background ? scratch.array<float>(5, int64_t(grid.tiles) * image.channels) : nullptr;
    for (Channels chosen = next_channels(0, image.channels); chosen.count > 0;
         chosen = next_channels(chosen.first + chosen.count, image.channels)) {
        float* wide = chosen.width > 4 ? scratch.array<float>(1, screen.count * chosen.width) : nullptr;
        pack_splats(screen, limits, image.features, image.channels, chosen, chosen.first == 0, splats, wide);
        auto run = [&](auto plain, auto absolute) {
            auto pull = out.absolute ? absolute : plain;
            pull(screen, image, chosen, limits, from, splats, wide, scratch, tile_background, out);
        };
        switch (chosen.width) {
            case 3: run(pull_image<3, false>, pull_image<3, true>); break;
            case 4: run(pull_image<4, false>, pull_image<4, true>); break;
            case 8: run(pull_image<8, false>, pull_image<8, true>); break;
            default: run(pull_image<16, false>, pull_image<16, true>); break;
        }
    }
    for (int k = 0; k < image.channels && v_background; ++k) {
        double total = 0.0;
        for (int tile = 0; tile < grid.tiles; ++tile) total += tile_background[int64_t(tile) * image.channels + k];
        v_background[k] = static_cast<float>(total);
    }
}

}  // namespace sd::SD_ISA
