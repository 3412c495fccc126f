// Backward tile rasterizer: gradients of every splat from the gradient of the image, front to back once more.
//
// Per pixel, rest = (what is still to be blended) . v starts as image . v_image + alpha v_alpha, and for splat j with weight w,
// colour c and cv = c . v_image + v_alpha:   rest -= w cv,   dL/d(ln alpha_j) = w cv - alpha_j / (1 - alpha_j) rest.
// So nothing but the two images is kept from the forward pass. Six moments of dL/d(ln alpha) in (dx, dy) and the channel sums
// are all a splat needs; the chain rule to centre, conic and opacity is done once per Gaussian.
//
// Work unit: one tile (tile_walk.h). No atomics: each pair owns a slot of 16 or 32 floats; then each Gaussian adds its slots in
// tile order, so the bytes do not depend on the number of threads. On request the gradient of a pixel is shortened until no channel
// exceeds a bound (pixel-wise clipping, PGC), and sum |dL/d(centre)| over pixels is kept beside the gradient (AbsGS). Bytes: 64
// read and 64 written per pair, read once more. Bound: vector issue, 39 operations per block and splat for three channels.
#pragma once
#include "tile_walk.h"

namespace sd::SD_ISA {

constexpr int64_t kSlotsAhead = 48;  // slots between a prefetch and its use

enum Moment { kOne, kX, kY, kXX, kXY, kYY, kMoments };

// kAbs: two more sums, |dL/d(centre)| over pixels, in the slot after the channels
template <int kWidth, bool kAbs> constexpr int slot_floats() { return (kMoments + kWidth + (kAbs ? 2 : 0) + 15) / 16 * 16; }

template <int kWidth> struct TileGradient {
    Floats v[kWidth][kBlocks];
    Floats v_alpha[kBlocks], rest[kBlocks];
};

// Sums of one splat over the blocks of a tile, by lane. The moments in x follow from those in y, for a column half shares dx.
template <int kWidth, bool kAbs> struct SplatSums {
    Floats one[kHalves], y[kHalves], yy[kHalves];
    Floats color[kWidth], absolute[kAbs ? 2 : 1];
    void clear() {
        for (int half = 0; half < kHalves; ++half) one[half] = 0.0f, y[half] = 0.0f, yy[half] = 0.0f;
        for (auto& value : color) value = 0.0f;
        for (auto& value : absolute) value = 0.0f;
    }
    void reduce(const Floats* dx, float* slot) const {
        Floats s[slot_floats<kWidth, kAbs>()];
        for (auto& value : s) value = 0.0f;
        for (int half = 0; half < kHalves; ++half) {
            Floats x = one[half] * dx[half];
            s[kOne] = s[kOne] + one[half], s[kX] = s[kX] + x, s[kY] = s[kY] + y[half];
            s[kXX] = fma(x, dx[half], s[kXX]), s[kXY] = fma(y[half], dx[half], s[kXY]), s[kYY] = s[kYY] + yy[half];
        }
        for (int k = 0; k < kWidth; ++k) s[kMoments + k] = color[k];
        for (int k = 0; k < 2 && kAbs; ++k) s[kMoments + kWidth + k] = absolute[k];
        for (int part = 0; part < slot_floats<kWidth, kAbs>(); part += 16) sums16(s + part, slot + part);
    }
};

template <int kWidth, bool kAbs>
inline bool pull_block(const SplatBatch& batch, int block, const sd_limits& limits, TilePixels& pixels,
                       TileGradient<kWidth>& grad, SplatSums<kWidth, kAbs>* sums) {
    const int half = block / kBlockRows;
    const Floats alpha_max = limits.alpha_max, v_alpha = grad.v_alpha[block];
    Floats v[kWidth], rest = grad.rest[block];
    for (int k = 0; k < kWidth; ++k) v[k] = grad.v[k][block];
    bool alive = walk_block(batch, block, limits, pixels, [&](const TileSplat& s, const Blend& blend) {
        SplatSums<kWidth, kAbs>& to = sums[blend.i];
        Floats cv = v_alpha;
        for (int k = 0; k < kWidth; ++k) {
            cv = fma(color_of<kWidth>(s)[k], v[k], cv);
            to.color[k] = fma(blend.weight, v[k], to.color[k]);
        }
        Floats share = blend.weight * cv;
        rest = rest - share;
        Floats pull = fnma(blend.alpha * reciprocal(1.0f - blend.alpha), rest, share);
        pull = zero_unless(not_greater_where(blend.drawn, blend.raw, alpha_max), pull);  // a clamped alpha passes no gradient
        Floats pull_y = pull * blend.dy;
        to.one[half] = to.one[half] + pull, to.y[half] = to.y[half] + pull_y, to.yy[half] = fma(pull_y, blend.dy, to.yy[half]);
        if (kAbs) {  // the record's conic is scaled by -log2(e) / 2 and -log2(e)
            Floats by_x = fma(Floats(s.qxy), blend.dy, (2.0f * s.qxx) * s.dx[half]);
            Floats by_y = fma(Floats(2.0f * s.qyy), blend.dy, s.linear[half]);
            to.absolute[0] = to.absolute[0] + abs(pull * by_x), to.absolute[1] = to.absolute[1] + abs(pull * by_y);
        }
    });
    grad.rest[block] = rest;
    return alive;
}

template <int kWidth, bool kAbs>
inline void pull_tile(const Splat* splats, const float* wide, const int32_t* ids, int count, const TileFrame& frame,
                      const sd_limits& limits, TilePixels& pixels, TileGradient<kWidth>& grad, float* slots) {
    constexpr int kSlot = slot_floats<kWidth, kAbs>();
    SplatBatch batch;
    SplatSums<kWidth, kAbs> sums[kBatch];
    int k = 0;
    for (; k < count && pixels.alive; k += kBatch) {
        int n = least(kBatch, count - k);
        batch.load<kWidth, true>(splats, wide, ids + k, n, count - k, frame, pixels.alive);
        for (int i = 0; i < n; ++i) sums[i].clear();
        walk_blocks(batch, pixels, [&](int block) {
            return pull_block<kWidth, kAbs>(batch, block, limits, pixels, grad, sums);
        });
        for (int i = 0; i < n; ++i) sums[i].reduce(batch.splat[i].dx, slots + int64_t(k + i) * kSlot);
    }
    if (k < count) __builtin_memset(slots + int64_t(k) * kSlot, 0, int64_t(count - k) * kSlot * sizeof(float));
}

struct ImageGradient {
    const float *image, *alpha, *v_image, *v_alpha;  // v_alpha may be null
    float bound;                                     // of |v_image| per channel; infinite: none
};

// Factor that brings the largest channel of each pixel's gradient down to the bound (PGC, ICLR 2024): directions are kept.
inline Floats clip_factor(const Floats* v, int channels, float bound) {
    Floats largest = 0.0f;
    for (int k = 0; k < channels; ++k) largest = max(largest, abs(v[k]));
    return select(largest > bound, bound / max(largest, 1e-30f), Floats(1.0f));
}

// Loads v and rest of one tile; returns in background[k] the tile's sum of transmittance * v_image.
template <int kWidth>
inline void load_gradient(const TileFrame& frame, const sd_image& image, const ImageGradient& from,
                          const TilePixels& pixels, TileGradient<kWidth>& grad, float* background) {
    const int channels = least(image.channels, kWidth);
    const bool with_alpha = from.v_alpha != nullptr, clipped = !__builtin_isinf(from.bound);
    Floats sums[kWidth], value[kWidth], shown[kWidth];
    for (int row = 0; row < frame.rows; ++row) {  // short rows: too irregular for the processor to see coming
        int64_t pixel = int64_t(frame.y0 + row) * image.width + frame.x0;
        for (int64_t at = 0; at < frame.columns * image.channels; at += 16)
            prefetch(from.v_image + pixel * image.channels + at), prefetch(from.image + pixel * image.channels + at);
        prefetch(from.alpha + pixel);
    }
    for (auto& each : sums) each = 0.0f;
    for (int b = 0; b < kBlocks; ++b) {
        PixelBlock at(frame, b, image.width);
        Floats factor = 1.0f, alpha, v_alpha = 0.0f;
        const Mask drawn = pixels.t[b] > 0.0f;
        at.load(from.alpha, 1, &alpha, 1);
        at.load(from.v_image, channels, value, channels);
        at.load(from.image, channels, shown, channels);
        if (with_alpha) at.load(from.v_alpha, 1, &v_alpha, 1);
        if (clipped) factor = clip_factor(value, channels, from.bound);
        Floats rest = v_alpha * alpha, t = 1.0f - alpha;
        for (int k = 0; k < kWidth; ++k) {
            Floats v = k < channels ? value[k] * factor : Floats(0.0f);
            if (k < channels) rest = fma(v, shown[k], rest), sums[k] = fma(v, t, sums[k]);
            grad.v[k][b] = zero_unless(drawn, v);
        }
        grad.v_alpha[b] = zero_unless(drawn, v_alpha), grad.rest[b] = zero_unless(drawn, rest);
    }
    for (int k = 0; k < channels && background; ++k) background[k] = sum(sums[k]);
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

// Adds up the slots of each Gaussian and applies the chain rule.
template <int kWidth, bool kAbs>
inline void gather_slots(const sd_screen& screen, const sd_image& image, const int32_t* offset,
                         const int32_t* pair_rank, const float* slots, const ScreenPull& out) {
    constexpr int kSlot = slot_floats<kWidth, kAbs>();
    int64_t pairs = offset[screen.count];
    parallel_chunks(screen.count, 2048, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t g = begin; g < end; ++g) {
            Floats sum[kSlot / kLanes];
            for (auto& value : sum) value = 0.0f;
            for (int32_t i = offset[g]; i < offset[g + 1]; ++i) {
                prefetch(slots + int64_t(pair_rank[least<int64_t>(i + kSlotsAhead, pairs - 1)]) * kSlot);
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
            for (int k = 0; k < 6; ++k) *to[k] = moved[k];
            for (int k = 0; k < image.channels && out.features; ++k)
                out.features[g * image.channels + k] = s[kMoments + k];
            for (int k = 0; k < 2 && kAbs; ++k) out.absolute[2 * g + k] = kLn2 * s[kMoments + kWidth + k];
        }
    });
}

template <int kWidth, bool kAbs>
inline void pull_image(const sd_screen& screen, const sd_image& image, const sd_limits& limits,
                       const ImageGradient& from, const Splat* splats, const float* wide, Scratch& scratch, float* tile_background,
                       const ScreenPull& out) {
    TileGrid grid(image.width, image.height);
    int64_t pairs = image.tile_offsets[grid.tiles];
    float* slots = scratch.array<float>(2, pairs * slot_floats<kWidth, kAbs>());
    int32_t* offset = scratch.array<int32_t>(3, screen.count + 1);
    int32_t* pair_rank = scratch.array<int32_t>(4, pairs);
    parallel_items(grid.tiles + 1, [&](int64_t item, int) {
        if (item == 0) {
            index_pairs(image.pair_gaussian, pairs, screen.count, offset, pair_rank);
            return;
        }
        int64_t tile = item - 1;
        TileFrame frame(grid, static_cast<int>(tile));
        TilePixels pixels(frame, image);
        TileGradient<kWidth> grad;
        load_gradient<kWidth>(frame, image, from, pixels, grad,
                              tile_background ? tile_background + tile * image.channels : nullptr);
        int32_t begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        pull_tile<kWidth, kAbs>(splats, wide, image.pair_gaussian + begin, end - begin, frame, limits, pixels, grad,
                          slots + int64_t(begin) * slot_floats<kWidth, kAbs>());
    });
    gather_slots<kWidth, kAbs>(screen, image, offset, pair_rank, slots, out);
}

inline void raster_backward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, const ImageGradient& from,
                            const ScreenPull& out, float* v_background) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    Splat* splats = scratch.array<Splat>(0, screen.count);
    float* tile_background = v_background ? scratch.array<float>(5, int64_t(grid.tiles) * image.channels) : nullptr;
    const int width = kernel_width(image.channels);
    float* wide = width > 4 ? scratch.array<float>(1, screen.count * width) : nullptr;
    pack_splats(screen, limits, image.features, image.channels, splats, wide);
    auto run = [&](auto plain, auto absolute) {
        auto pull = out.absolute ? absolute : plain;
        pull(screen, image, limits, from, splats, wide, scratch, tile_background, out);
    };
    switch (width) {
        case 3: run(pull_image<3, false>, pull_image<3, true>); break;
        case 4: run(pull_image<4, false>, pull_image<4, true>); break;
        case 8: run(pull_image<8, false>, pull_image<8, true>); break;
        default: run(pull_image<16, false>, pull_image<16, true>); break;
    }
    for (int k = 0; k < image.channels && v_background; ++k) {
        double total = 0.0;
        for (int tile = 0; tile < grid.tiles; ++tile) total += tile_background[int64_t(tile) * image.channels + k];
        v_background[k] = static_cast<float>(total);
    }
}

}  // namespace sd::SD_ISA
