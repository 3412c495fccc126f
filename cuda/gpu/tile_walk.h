// A block walks its tile's list front to back: 128 splats at a time into shared memory, then every warp visits only
// those that can reach its own 8 x 4 pixels. The forward and the first half of the backward are this walk with another
// `visit`.
#pragma once

#include "splat.h"

namespace scene_distill {

constexpr int kBucket = 32;  // splats between two checkpoints of the backward: one a lane
constexpr int kBatch = 4 * kBucket;
constexpr int kWarpWidth = 8, kWarpHeight = 4;  // pixels of one warp

// One pixel's place and progress. Threads of a warp form an 8 x 4 patch; `in_tile` counts row-major inside the tile.
struct TilePixel {
    int tile, warp, column, row, in_tile;
    float x, y;           // centre, px
    bool inside;          // the image
    float transmittance;  // after the splats visited so far
    bool done;
};

__device__ __forceinline__ TilePixel tile_pixel(int width, int height) {
    TilePixel p;
    const int thread = threadIdx.x, lane = thread % kWarp, columns = ceil_div(width, kTile);
    p.tile = blockIdx.x;
    p.warp = thread / kWarp;
    const int column = p.warp % 2 * kWarpWidth + lane % kWarpWidth, row = p.warp / 2 * kWarpHeight + lane / kWarpWidth;
    p.column = p.tile % columns * kTile + column;
    p.row = p.tile / columns * kTile + row;
    p.in_tile = row * kTile + column;
    p.x = p.column + 0.5f;
    p.y = p.row + 0.5f;
    p.inside = p.column < width && p.row < height;
    p.transmittance = 1.0f;
    p.done = !p.inside;
    return p;
}

template <int C>
struct Batch {
    Splat splat[kBatch];
    float feature[kBatch][C];
    unsigned char warps[kBatch];  // bit w: the splat can reach the pixels of warp w
};

// Bit w is set when the splat's box meets the pixel centres of warp w.
__device__ __forceinline__ unsigned warps_reached(const Splat& s, float tile_x, float tile_y, float alpha_min) {
    const Reach reach = splat_reach(s, alpha_min);
    unsigned mask = 0;
    for (int warp = 0; warp < kTilePixels / kWarp; warp++) {
        const float x0 = tile_x + warp % 2 * kWarpWidth + 0.5f, y0 = tile_y + warp / 2 * kWarpHeight + 0.5f;
        const bool misses = s.x + reach.half_x < x0 || s.x - reach.half_x > x0 + (kWarpWidth - 1) ||
                            s.y + reach.half_y < y0 || s.y - reach.half_y > y0 + (kWarpHeight - 1);
        mask |= unsigned(!misses) << warp;
    }
    return mask;
}

template <int C>
__device__ __forceinline__ void load_batch(Batch<C>& batch, const SdRasterInputs& in, ChannelSlice slice, int first,
                                           int count) {
    const int thread = threadIdx.x, columns = ceil_div(in.width, kTile), tile = blockIdx.x;
    if (thread < kBatch) {
        unsigned warps = 0;
        if (thread < count) {
            batch.splat[thread] = load_splat(in, in.pair_gaussian[first + thread]);
            warps = warps_reached(batch.splat[thread], float(tile % columns * kTile), float(tile / columns * kTile),
                                  in.limits.alpha_min);
        }
        batch.warps[thread] = (unsigned char)warps;
    }
    for (int e = thread; e < count * C; e += kTilePixels) {
        const int j = e / C, c = e % C;
        const size_t row = size_t(in.pair_gaussian[first + j]) * in.channels;
        batch.feature[j][c] = c < slice.count ? in.features[row + slice.first + c] : 0.0f;
    }
}

// Calls bucket(index of the bucket in the tile) before every 32 splats, then visit(weight, feature row) for each splat
// that contributes to the pixel. Every thread of the block must call this.
template <int C, class Bucket, class Visit>
__device__ __forceinline__ void walk_tile(const SdRasterInputs& in, ChannelSlice slice, Batch<C>& batch,
                                          TilePixel& pixel, Bucket bucket, Visit visit) {
    const int start = in.tile_offsets[pixel.tile], end = in.tile_offsets[pixel.tile + 1], lane = threadIdx.x % kWarp;
    for (int first = start; first < end; first += kBatch) {
        if (__syncthreads_count(pixel.done) == kTilePixels) break;
        const int count = min(kBatch, end - first);
        load_batch<C>(batch, in, slice, first, count);
        __syncthreads();
        for (int group = 0; group < count; group += kBucket) {
            bucket((first - start + group) / kBucket);
            unsigned todo = __ballot_sync(kFullWarp, batch.warps[group + lane] >> pixel.warp & 1);
            if (__all_sync(kFullWarp, pixel.done)) todo = 0;
            while (todo) {
                const int j = group + __ffs(int(todo)) - 1;
                todo &= todo - 1;
                if (pixel.done) continue;
                const Splat& splat = batch.splat[j];
                const float alpha = splat_alpha(splat, splat.x - pixel.x, splat.y - pixel.y, in.limits.alpha_max);
                if (alpha < in.limits.alpha_min) continue;
                const float next = next_transmittance(pixel.transmittance, alpha);
                if (next <= in.limits.transmittance_min) {
                    pixel.done = true;
                    continue;
                }
                visit(alpha * pixel.transmittance, batch.feature[j]);
                pixel.transmittance = next;
            }
        }
    }
}

}  // namespace scene_distill
