// The walk over one tile that every tile kernel shares: which splats cover which block of pixels, and how they blend there.
//
// Splats come in batches of 32, front to back. A batch is first turned into one word per block that says which of its splats
// cover it; then each block takes its splats one after another with its pixels in registers. So a branch is taken once per
// block and batch instead of once per splat, and blocks that a splat does not cover, or whose pixels are all finished, cost
// nothing.
//
// A contribution counts when alpha >= alpha_min. Transmittance runs on below transmittance_min, where nothing is drawn any more:
// a pixel is finished when its next transmittance would be at or below that, and that last splat is not drawn.
#pragma once
#include "splat.h"

namespace sd::SD_ISA {

constexpr int kBatch = 32;  // bits of a word

// Running transmittance of the pixels of a tile; 0 where there is no pixel or it is masked.
struct TilePixels {
    Floats t[kBlocks];
    uint32_t alive = 0;  // bit b: block b has a pixel that is not finished
    TilePixels(const TileFrame& frame, const sd_image& image) {
        for (int b = 0; b < kBlocks; ++b) {
            t[b] = PixelBlock(frame, b, image.width).shown(image.mask);
            alive |= uint32_t(any(t[b] > 0.0f)) << b;
        }
    }
};

// What the walk reads of a splat; one of these is 512 bytes, so that a shift finds it.
struct alignas(512) TileSplat {
    Floats constant[kHalves], linear[kHalves];  // log2 alpha = constant + dy (linear + qyy dy)
    Floats dx[kHalves];                         // px from the splat to the pixels of a column half
    float y, qyy;                               // y: px from the first pixel centre of the tile
    float color[4];                             // up to 4 channels
    const float* features;                      // more channels
    float qxx, qxy;
};

struct SplatBatch {
    TileSplat splat[kBatch];
    uint32_t hits[kBlocks];  // bit i: splat i of the batch covers the block
    TinyIsZero tiny_is_zero;  // alpha far from a splat is a denormal number: slow on some processors

    template <int kWidth, bool kMoments>
    void load(const Splat* all, const float* wide, const int32_t* ids, int count, int left, const TileFrame& frame, uint32_t alive) {
        BlockWords words;
        const Floats column = lane_columns();
        for (int i = 0; i < count; ++i) {
            int64_t ahead = ids[least(i + kBatch, left - 1)];
            prefetch(&all[ahead]);
            if (kWidth > 4) prefetch(wide + ahead * kWidth);
            const Splat& s = all[ids[i]];
            TileSplat& to = splat[i];
            words.set(covered(s, frame) & alive, i);
            to.y = s.y - (frame.y0 + 0.5f), to.qyy = s.qyy;
            if (kWidth > 4)
                to.features = wide + int64_t(ids[i]) * kWidth;
            else
                __builtin_memcpy(to.color, s.color, sizeof s.color);
            if (kMoments) to.qxx = s.qxx, to.qxy = s.qxy;
            for (int half = 0; half < kHalves; ++half) {
                Floats x = column + (static_cast<float>(frame.x0 + half * kBlockWidth) + 0.5f - s.x);
                if (kMoments) to.dx[half] = x;
                to.constant[half] = fma(Floats(s.qxx) * x, x, s.log2_opacity);
                to.linear[half] = Floats(s.qxy) * x;
            }
        }
        words.store(hits);
    }

    // Blocks with a pixel that may reach alpha_min: an exact cut of the ellipse along every row.
    static uint32_t covered(const Splat& s, const TileFrame& frame) {
        uint32_t found = 0;
        for (int first = 0; first < kTile; first += kLanes) {
            Floats dy = iota() + (static_cast<float>(frame.y0 + first) + 0.5f) - s.y;
            Floats reach = root(fnma(s.narrowing * dy, dy, s.reach2));  // NaN where the row misses the ellipse
            Floats middle = fma(s.slant, dy, s.x), left = middle - reach, right = middle + reach;
            for (int half = 0; half < kHalves; ++half) {
                float x = static_cast<float>(frame.x0 + half * kBlockWidth) + 0.5f;
                Mask inside = not_greater_where(right >= x, left, x + static_cast<float>(kBlockWidth - 1));
                found |= row_blocks(inside) << (half * kBlockRows + first / kBlockHeight);
            }
        }
        return found;
    }
};

// What a splat does to the pixels of one block.
struct Blend {
    int i;                          // of the batch
    Floats dy, raw, alpha, weight;  // raw: alpha before the clamp; weight: 0 where not drawn
    Floats before, after;           // transmittance
    Mask drawn;
};

// Calls visit(splat, blend) for the splats of the batch that cover the block, front to back; false when every pixel is finished.
template <class Visit>
inline bool walk_block(const SplatBatch& batch, int block, const sd_limits& limits, TilePixels& pixels, Visit&& visit) {
    const Floats alpha_min = limits.alpha_min, alpha_max = limits.alpha_max, t_min = limits.transmittance_min;
    const Floats row = lane_rows() + static_cast<float>(block % kBlockRows * kBlockHeight);
    const int half = block / kBlockRows;
    Floats t = pixels.t[block];
    for (uint32_t left = batch.hits[block]; left; left &= left - 1) {
        Blend blend;
        blend.i = __builtin_ctz(left);
        const TileSplat& s = batch.splat[blend.i];
        blend.dy = row - s.y;
        blend.raw = exp2(fma(blend.dy, fma(Floats(s.qyy), blend.dy, s.linear[half]), s.constant[half]));
        blend.alpha = min(blend.raw, alpha_max);
        Mask counts = blend.alpha >= alpha_min;
        blend.before = t, t = fnma_where(counts, blend.alpha, t), blend.after = t;
        blend.drawn = greater_where(counts, t, t_min);
        blend.weight = product_where(blend.drawn, blend.alpha, blend.before);
        visit(s, blend);
    }
    pixels.t[block] = t;
    return any(t > t_min);
}

// Walks the blocks that are alive; visit_block(block) must call walk_block and return what it returns.
template <class VisitBlock> inline void walk_blocks(const SplatBatch& batch, TilePixels& pixels, VisitBlock&& visit_block) {
    for (uint32_t left = pixels.alive; left; left &= left - 1) {
        int block = __builtin_ctz(left);
        if (batch.hits[block] && !visit_block(block)) pixels.alive &= ~(1u << block);
    }
}

template <int kWidth> inline const float* color_of(const TileSplat& s) { return kWidth > 4 ? s.features : s.color; }

}  // namespace sd::SD_ISA
