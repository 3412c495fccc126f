// A block walks its tile's list front to back: 128 splats at a time into shared memory, then every warp visits only
// those that can reach its own 8 x 4 pixels. Every raster kernel but the one a splat is this walk with other callbacks.
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

__device__ __forceinline__ TilePixel tile_pixel(const SdRasterInputs& in) {
    TilePixel p;
    const int thread = threadIdx.x, lane = thread % kWarp, columns = ceil_div(in.width, kTile);
    p.tile = blockIdx.x;
    p.warp = thread / kWarp;
    const int column = p.warp % 2 * kWarpWidth + lane % kWarpWidth, row = p.warp / 2 * kWarpHeight + lane / kWarpWidth;
    p.column = p.tile % columns * kTile + column;
    p.row = p.tile / columns * kTile + row;
    p.in_tile = row * kTile + column;
    p.x = p.column + 0.5f;
    p.y = p.row + 0.5f;
    p.inside = p.column < in.width && p.row < in.height;
    p.transmittance = 1.0f;
    p.done = !p.inside || (in.mask && !in.mask[size_t(p.row) * in.width + p.column]);
    return p;
}

template <int C>
struct Batch {
    Splat splat[kBatch];
    float feature[kBatch][C];
    unsigned char warps[kBatch];  // bit w: the splat can reach the pixels of warp w
};
template <>
struct Batch<0> {  // for walks that draw nothing
    Splat splat[kBatch];
    unsigned char warps[kBatch];
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
    if constexpr (C > 0) {
        for (int e = thread; e < count * C; e += kTilePixels) {
            const int j = e / C, c = e % C;
            const size_t row = size_t(in.pair_gaussian[first + j]) * in.channels;
            batch.feature[j][c] = c < slice.count ? in.features[row + slice.first + c] : 0.0f;
        }
    }
}

// A splat that contributes to the pixel.
struct Contact {
    int pair, slot;        // place in pair_gaussian, and in the batch
    float dx, dy, alpha;   // mean - pixel, px
    float weight, behind;  // alpha * transmittance; transmittance behind the splat
};

// Whether the splat contributes to the pixel; marks the pixel as done when it would end it.
__device__ __forceinline__ bool meets(const Splat& splat, const SdLimits& limits, TilePixel& pixel, Contact& contact) {
    if (pixel.done) return false;
    contact.dx = splat.x - pixel.x;
    contact.dy = splat.y - pixel.y;
    contact.alpha = splat_alpha(splat, contact.dx, contact.dy, limits.alpha_max);
    if (contact.alpha < limits.alpha_min) return false;
    contact.behind = next_transmittance(pixel.transmittance, contact.alpha);
    if (contact.behind <= limits.transmittance_min) {
        pixel.done = true;
        return false;
    }
    contact.weight = contact.alpha * pixel.transmittance;
    return true;
}

// Calls bucket(index of the bucket in the tile) before every 32 splats, visit(contact) for each splat that contributes
// to the pixel, and then after(pair) in every lane of the warp, whether or not its pixel was visited. Every thread of
// the block must call this.
template <int C, class Bucket, class Visit, class After>
__device__ __forceinline__ void walk_tile(const SdRasterInputs& in, ChannelSlice slice, Batch<C>& batch,
                                          TilePixel& pixel, Bucket bucket, Visit visit, After after) {
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
                Contact contact = {first + j, j};
                if (meets(batch.splat[j], in.limits, pixel, contact)) {
                    visit(contact);
                    pixel.transmittance = contact.behind;
                }
                after(first + j);
            }
        }
    }
}

struct Nothing {
    __device__ void operator()(int) const {}
};

}  // namespace scene_distill
