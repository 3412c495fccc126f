// What a picture says about its Gaussians: how much each contributed to which pixels, and which one is the median of a pixel.
//
// Blends as raster_forward.h does, block by block, but keeps no colours. Contributions: each pair owns a slot {sum of weights,
// largest weight, pixels}; each Gaussian then adds its slots in tile order, so the bytes do not depend on the number of threads.
// Median: the Gaussian that takes a pixel's transmittance from above to at or below one half; -1 where nothing does.
//
// Work unit: one tile. Bytes: 64 per pair read, 16 written for contributions. Bound: vector issue, as the forward pass.
#pragma once
#include "raster_backward.h"

namespace sd::SD_ISA {

inline void pack_geometry(const sd_screen& screen, const sd_limits& limits, Splat* splats) {
    parallel_chunks(screen.count, kPackChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes)
            pack_lanes(screen, limits, i, static_cast<int>(least<int64_t>(kLanes, end - i)), splats);
    });
}

// Calls visit(k, block, weight, drawn, before, after) for every block that pair k of the tile is evaluated on, front to back.
template <class Visit>
inline void walk_tile(const Splat* splats, const int32_t* ids, int count, const TileFrame& frame, const sd_limits& limits,
                      Transmittance& live, Visit&& visit) {
    const Floats lane_column = lane_columns(), lane_row = lane_rows();
    const Floats alpha_min = limits.alpha_min, alpha_max = limits.alpha_max, t_min = limits.transmittance_min;
    if (!live.shrink()) return;
    for (int k = 0; k < count; ++k) {
        prefetch(&splats[ids[least(k + kLookAhead, count - 1)]]);
        const Splat& s = splats[ids[k]];
        Cover cover(s, frame, live);
        for (int half = 0; half < kHalves && !cover.empty(); ++half) {
            if (!Cover::has(s, frame, half)) continue;
            HalfExponent e(s, frame, half, cover.first, lane_column, lane_row);
            for (int r = cover.first; r <= cover.last; ++r, e.step()) {
                int block = half * kBlockRows + r;
                Floats alpha = min(e.alpha(), alpha_max), t = live.t[block];
                Mask counts = alpha >= alpha_min;
                Floats w = alpha * t, next = t - w;
                Mask drawn = counts & (next > t_min);
                live.t[block] = negate_where(and_not(counts, drawn), select(drawn, next, t), t);
                visit(k, block, zero_unless(drawn, w), drawn, t, next);
            }
        }
        if (k % kWindowPeriod == kWindowPeriod - 1 && !live.shrink()) break;
    }
}

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

// The slots of one tile; the sums of a splat stay in registers until the next splat begins.
inline void measure_tile(const Splat* splats, const int32_t* ids, int count, const TileFrame& frame, const sd_limits& limits,
                         Transmittance& live, Contribution* slots) {
    __builtin_memset(slots, 0, sizeof(Contribution) * static_cast<size_t>(count));
    Floats total = 0.0f, largest = 0.0f;
    int now = -1;
    auto close = [&] {
        if (now >= 0) slots[now].sum = sum(total), slots[now].largest = largest_lane(largest);
        total = 0.0f, largest = 0.0f;
    };
    walk_tile(splats, ids, count, frame, limits, live, [&](int k, int, Floats w, Mask drawn, Floats, Floats) {
        if (k != now) close(), now = k;
        total = total + w, largest = max(largest, w);
        slots[k].pixels += sd::SD_ISA::count(drawn), slots[k].blocks += 1;
    });
    close();
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
    pack_geometry(screen, limits, splats);
    parallel_items(grid.tiles + 1, [&](int64_t item, int) {
        if (item == 0) return index_pairs(image.pair_gaussian, pairs, screen.count, offset, pair_rank);
        TileFrame frame(grid, static_cast<int>(item - 1));
        Transmittance live(frame, image);
        int32_t begin = image.tile_offsets[item - 1], end = image.tile_offsets[item];
        measure_tile(splats, image.pair_gaussian + begin, end - begin, frame, limits, live, slots + begin);
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
    pack_geometry(screen, limits, splats);
    parallel_items(grid.tiles, [&](int64_t tile, int) {
        TileFrame frame(grid, static_cast<int>(tile));
        Transmittance live(frame, image);
        int32_t found[kBlocks][kLanes], begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        __builtin_memset(found, -1, sizeof found);
        const int32_t* ids = image.pair_gaussian + begin;
        walk_tile(splats, ids, end - begin, frame, limits, live,
                  [&](int k, int block, Floats, Mask drawn, Floats before, Floats after) {
                      Mask crossed = drawn & (before > 0.5f) & (after <= 0.5f);
                      for (int l = 0; any(crossed) && l < kLanes; ++l)
                          if (lane(crossed, l)) found[block][l] = ids[k];
                  });
        for (int row = 0; row < frame.rows; ++row)
            for (int column = 0; column < frame.columns; ++column)
                median[int64_t(frame.y0 + row) * image.width + frame.x0 + column] =
                    found[TileFrame::block(column, row)][TileFrame::lane(column, row)];
    });
}

}  // namespace sd::SD_ISA
