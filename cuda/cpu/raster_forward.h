// Forward tile rasterizer: alpha blending front to back (3DGS eq. 3).
//
// Work unit: one 16x16 tile on one thread; its accumulators (transmittance and up to 16 channels, 2 to 17 KB) stay in L1 while
// the list of splats streams by (tile_walk.h). Bytes: 64 per pair read, about 4 (D + 1) per pixel written. Bound: vector
// instruction issue, 19 operations per block of kLanes pixels and splat for three channels, seven of them the exponential.
// More than 16 channels are drawn by raster_wide.h.
#pragma once
#include "tile_walk.h"

namespace sd::SD_ISA {

template <int kWidth> struct TileColors {
    Floats c[kWidth][kBlocks], t[kBlocks];  // t: transmittance behind what was drawn
    TileColors() {
        for (auto& channel : c)
            for (auto& block : channel) block = 0.0f;
        for (auto& block : t) block = 1.0f;
    }
};

template <int kWidth>
inline bool draw_block(const SplatBatch& batch, int block, const sd_limits& limits, TilePixels& pixels, TileColors<kWidth>& acc) {
    Floats c[kWidth], t = acc.t[block];
    for (int k = 0; k < kWidth; ++k) c[k] = acc.c[k][block];
    bool alive = walk_block(batch, block, limits, pixels, [&](const TileSplat& s, const Blend& blend) {
        for (int k = 0; k < kWidth; ++k) c[k] = fma(blend.weight, color_of<kWidth>(s)[k], c[k]);
        t = select(blend.drawn, blend.after, t);
    });
    for (int k = 0; k < kWidth; ++k) acc.c[k][block] = c[k];
    acc.t[block] = t;
    return alive;
}

template <int kWidth>
inline void draw_tile(const Splat* splats, const float* wide, const int32_t* ids, int count, const TileFrame& frame,
                      const sd_limits& limits, TilePixels& pixels, TileColors<kWidth>& acc) {
    SplatBatch batch;
    for (int k = 0; k < count && pixels.alive; k += kBatch) {
        batch.load<kWidth, false>(splats, wide, ids + k, least(kBatch, count - k), count - k, frame, pixels.alive);
        walk_blocks(batch, pixels, [&](int block) { return draw_block<kWidth>(batch, block, limits, pixels, acc); });
    }
}

template <int kWidth>
inline void write_tile(const TileColors<kWidth>& acc, const TileFrame& frame, const sd_image& image, float* out,
                       float* alpha) {
    const int channels = least(image.channels, kWidth);
    for (int b = 0; b < kBlocks; ++b) {
        PixelBlock at(frame, b, image.width);
        Floats shown[kWidth];
        for (int k = 0; k < kWidth; ++k) {
            float background = image.background && k < channels ? image.background[k] : 0.0f;
            shown[k] = fma(acc.t[b], background, acc.c[k][b]);
        }
        at.store(out, channels, shown, channels);
        Floats covered = 1.0f - acc.t[b];
        at.store(alpha, 1, &covered, 1);
    }
}

template <int kWidth>
inline void draw_image(const Splat* splats, const float* wide, const sd_image& image, const sd_limits& limits,
                       float* out, float* alpha) {
    TileGrid grid(image.width, image.height);
    parallel_items(grid.tiles, [&](int64_t tile, int) {
        TileFrame frame(grid, static_cast<int>(tile));
        TilePixels pixels(frame, image);
        TileColors<kWidth> acc;
        int32_t begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        draw_tile<kWidth>(splats, wide, image.pair_gaussian + begin, end - begin, frame, limits, pixels, acc);
        write_tile<kWidth>(acc, frame, image, out, alpha);
    });
}

inline void raster_forward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, float* out, float* alpha) {
    Scratch scratch;
    const int width = kernel_width(image.channels);
    Splat* splats = scratch.array<Splat>(0, screen.count);
    float* wide = width > 4 ? scratch.array<float>(1, screen.count * width) : nullptr;
    pack_splats(screen, limits, image.features, image.channels, splats, wide);
    switch (width) {
        case 3: return draw_image<3>(splats, wide, image, limits, out, alpha);
        case 4: return draw_image<4>(splats, wide, image, limits, out, alpha);
        case 8: return draw_image<8>(splats, wide, image, limits, out, alpha);
        default: return draw_image<16>(splats, wide, image, limits, out, alpha);
    }
}

}  // namespace sd::SD_ISA
