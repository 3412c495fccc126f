// What a picture says about its Gaussians: how much each contributed to which pixels, and which one is the median of a pixel.
//
// Walks the tiles as raster_forward.h does, but keeps no colours. Contributions: each pair owns a slot {sum of weights,
// largest weight, pixels}; each Gaussian then adds its slots in tile order, so the bytes do not depend on the number of threads.
// Median: the Gaussian that takes a pixel's transmittance from above to at or below one half; -1 where nothing does.
//
// Work unit: one tile. Bytes: 64 per pair read, 16 written for contributions. Bound: vector issue, as the forward pass.
#pragma once
#include "raster_backward.h"

namespace sd::SD_ISA {

struct Contribution {
    float sum, largest;
    int32_t pixels, blocks;  // blocks: of kLanes pixels that were evaluated
};

inline float largest_lane(Floats a) {
    alignas(64) float lanes[kLanes];
    store(lanes, a);
    float found = lanes[0];
    for (int i = 1; i < kLanes; ++i) found = most(found, lanes[i]);
    return found;
}

inline Contribution add(Contribution a, Contribution b) {
    return {a.sum + b.sum, most(a.largest, b.largest), a.pixels + b.pixels, a.blocks + b.blocks};
}

// The slots of one tile.
inline void measure_tile(const Splat* splats, const int32_t* ids, int count, const TileFrame& frame, const sd_limits& limits,
                         TilePixels& pixels, Contribution* slots) {
    __builtin_memset(slots, 0, sizeof(Contribution) * static_cast<size_t>(count));
    SplatBatch batch;
    for (int k = 0; k < count && pixels.alive; k += kBatch) {
        int n = least(kBatch, count - k);
        Floats total[kBatch], largest[kBatch];
        for (int i = 0; i < n; ++i) total[i] = 0.0f, largest[i] = 0.0f;
        batch.load<3, false>(splats, nullptr, ids + k, n, count - k, frame, pixels.alive);
        walk_blocks(batch, pixels, [&](int block) {
            return walk_block(batch, block, limits, pixels, [&](const TileSplat&, const Blend& blend) {
                total[blend.i] = total[blend.i] + blend.weight, largest[blend.i] = max(largest[blend.i], blend.weight);
                slots[k + blend.i].pixels += sd::SD_ISA::count(blend.drawn), slots[k + blend.i].blocks += 1;
            });
        });
        for (int i = 0; i < n; ++i) slots[k + i].sum = sum(total[i]), slots[k + i].largest = largest_lane(largest[i]);
    }
}

struct ContributionOut {
    float *sums, *largest;
    int32_t* pixels;
};

// Returns how many blocks of kLanes pixels were evaluated.
inline int64_t raster_contributions(const sd_screen& screen, const sd_image& image, const sd_limits& limits,
                                    const ContributionOut& out) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    int64_t pairs = image.tile_offsets[grid.tiles], chunks = (screen.count + kPackChunk - 1) / kPackChunk;
    Splat* splats = scratch.array<Splat>(0, screen.count);
    Contribution* slots = scratch.array<Contribution>(2, pairs);
    int32_t *offset = scratch.array<int32_t>(3, screen.count + 1), *pair_rank = scratch.array<int32_t>(4, pairs);
    int64_t* blocks = scratch.array<int64_t>(5, chunks);
    pack_splats(screen, limits, nullptr, 0, splats, nullptr);
    parallel_items(grid.tiles + 1, [&](int64_t item, int) {
        if (item == 0) return index_pairs(image.pair_gaussian, pairs, screen.count, offset, pair_rank);
        TileFrame frame(grid, static_cast<int>(item - 1));
        TilePixels pixels(frame, image);
        int32_t begin = image.tile_offsets[item - 1], end = image.tile_offsets[item];
        measure_tile(splats, image.pair_gaussian + begin, end - begin, frame, limits, pixels, slots + begin);
    });
    parallel_chunks(screen.count, kPackChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        blocks[chunk] = 0;
        for (int64_t g = begin; g < end; ++g) {
            Contribution total = {0.0f, 0.0f, 0, 0};
            for (int32_t i = offset[g]; i < offset[g + 1]; ++i) total = add(total, slots[pair_rank[i]]);
            out.sums[g] = total.sum, out.largest[g] = total.largest, out.pixels[g] = total.pixels;
            blocks[chunk] += total.blocks;
        }
    });
    int64_t evaluated = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) evaluated += blocks[chunk];
    return evaluated;
}

inline void raster_median(const sd_screen& screen, const sd_image& image, const sd_limits& limits, int32_t* median) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    Splat* splats = scratch.array<Splat>(0, screen.count);
    pack_splats(screen, limits, nullptr, 0, splats, nullptr);
    parallel_items(grid.tiles, [&](int64_t tile, int) {
        TileFrame frame(grid, static_cast<int>(tile));
        TilePixels pixels(frame, image);
        int32_t found[kBlocks][kLanes], begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        __builtin_memset(found, -1, sizeof found);
        const int32_t* ids = image.pair_gaussian + begin;
        SplatBatch batch;
        for (int k = 0; k < end - begin && pixels.alive; k += kBatch) {
            int left = end - begin - k;
            batch.load<3, false>(splats, nullptr, ids + k, least(kBatch, left), left, frame, pixels.alive);
            walk_blocks(batch, pixels, [&](int block) {
                return walk_block(batch, block, limits, pixels, [&](const TileSplat&, const Blend& blend) {
                    Mask crossed = blend.drawn & (blend.before > 0.5f) & (blend.after <= 0.5f);
                    for (int l = 0; any(crossed) && l < kLanes; ++l)
                        if (lane(crossed, l)) found[block][l] = ids[k + blend.i];
                });
            });
        }
        for (int row = 0; row < frame.rows; ++row)
            for (int column = 0; column < frame.columns; ++column)
                median[int64_t(frame.y0 + row) * image.width + frame.x0 + column] =
                    found[TileFrame::block(column, row)][TileFrame::lane(column, row)];
    });
}

}  // namespace sd::SD_ISA
