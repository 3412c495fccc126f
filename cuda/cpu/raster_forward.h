// Forward tile rasterizer: alpha blending front to back (3DGS eq. 3).
//
// Work unit: one 16x16 tile on one thread; its accumulators (transmittance and up to 16 channels, 2 to 17 KB) stay in L1 while
// the list of splats streams by. Bytes: 64 per pair read, about 4 (D + 1) per pixel written. Bound: vector instruction issue,
// about 24 operations per block of kLanes pixels and splat, half of them the exponential.
// A contribution counts when alpha >= alpha_min; a pixel is finished when its next transmittance would be at or below
// transmittance_min, and that last splat is not drawn. More than 16 channels are drawn in passes of 16.
#pragma once
#include "splat.h"

namespace sd::SD_ISA {

template <int kWidth> struct TileColors {
    Floats c[kWidth][kBlocks];
};

template <int kWidth>
inline void draw_half(const Splat& s, const float* color, const TileFrame& frame, int half, const Cover& cover,
                      const sd_limits& limits, Floats lane_column, Floats lane_row, Transmittance& live, TileColors<kWidth>& acc) {
    HalfExponent e(s, frame, half, cover.first, lane_column, lane_row);
    const Floats alpha_min = limits.alpha_min, alpha_max = limits.alpha_max, t_min = limits.transmittance_min;
    for (int r = cover.first; r <= cover.last; ++r, e.step()) {
        int block = half * kBlockRows + r;
        Floats alpha = min(e.alpha(), alpha_max), t = live.t[block];
        Mask counts = alpha >= alpha_min;
        Floats w = alpha * t, next = t - w;
        Mask drawn = counts & (next > t_min), finished = and_not(counts, drawn);
        live.t[block] = negate_where(finished, select(drawn, next, t), t);
        w = zero_unless(drawn, w);
        for (int k = 0; k < kWidth; ++k) acc.c[k][block] = fma(w, color[k], acc.c[k][block]);
    }
}

template <int kWidth>
inline void draw_tile(const Splat* splats, const float* wide, const int32_t* ids, int count, const TileFrame& frame,
                      const sd_limits& limits, Transmittance& live, TileColors<kWidth>& acc) {
    for (auto& channel : acc.c)
        for (auto& block : channel) block = 0.0f;
    const Floats lane_column = lane_columns(), lane_row = lane_rows();
    if (!live.shrink()) return;
    for (int k = 0; k < count; ++k) {
        int64_t ahead = ids[least(k + kLookAhead, count - 1)];
        prefetch(&splats[ahead]);
        if (kWidth > 4) prefetch(wide + ahead * kWidth);
        const Splat& s = splats[ids[k]];
        Cover cover(s, frame, live);
        if (!cover.empty()) {
            const float* color = kWidth > 4 ? wide + int64_t(ids[k]) * kWidth : s.color;
            for (int half = 0; half < kHalves; ++half)
                if (Cover::has(s, frame, half))
                    draw_half<kWidth>(s, color, frame, half, cover, limits, lane_column, lane_row, live, acc);
        }
        if (k % kWindowPeriod == kWindowPeriod - 1 && !live.shrink()) break;
    }
}

template <int kWidth>
inline void write_tile(const Transmittance& live, const TileColors<kWidth>& acc, const TileFrame& frame, const sd_image& image,
                       Channels chosen, float* out, float* alpha) {
    alignas(64) float t[kBlocks][kLanes], c[kWidth][kBlocks][kLanes];
    for (int b = 0; b < kBlocks; ++b) {
        store(t[b], abs(live.t[b]));
        for (int k = 0; k < kWidth; ++k) store(c[k][b], acc.c[k][b]);
    }
    for (int row = 0; row < frame.rows; ++row)
        for (int column = 0; column < frame.columns; ++column) {
            int b = TileFrame::block(column, row), l = TileFrame::lane(column, row);
            int64_t pixel = int64_t(frame.y0 + row) * image.width + frame.x0 + column;
            if (chosen.first == 0) alpha[pixel] = 1.0f - t[b][l];
            float* to = out + pixel * image.channels + chosen.first;
            for (int k = 0; k < chosen.count; ++k)
                to[k] = c[k][b][l] + (image.background ? t[b][l] * image.background[chosen.first + k] : 0.0f);
        }
}

template <int kWidth>
inline void draw_image(const Splat* splats, const float* wide, const sd_image& image, Channels chosen, const sd_limits& limits,
                       float* out, float* alpha) {
    TileGrid grid(image.width, image.height);
    parallel_items(grid.tiles, [&](int64_t tile, int) {
        TileFrame frame(grid, static_cast<int>(tile));
        Transmittance live(frame, image);
        TileColors<kWidth> acc;
        int32_t begin = image.tile_offsets[tile], end = image.tile_offsets[tile + 1];
        draw_tile<kWidth>(splats, wide, image.pair_gaussian + begin, end - begin, frame, limits, live, acc);
        write_tile<kWidth>(live, acc, frame, image, chosen, out, alpha);
    });
}

inline void raster_forward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, float* out, float* alpha) {
    Scratch scratch;
    Splat* splats = scratch.array<Splat>(0, screen.count);
    for (Channels chosen = next_channels(0, image.channels); chosen.count > 0;
         chosen = next_channels(chosen.first + chosen.count, image.channels)) {
        float* wide = chosen.width > 4 ? scratch.array<float>(1, screen.count * chosen.width) : nullptr;
        pack_splats(screen, limits, image.features, image.channels, chosen, chosen.first == 0, splats, wide);
        switch (chosen.width) {
            case 3: draw_image<3>(splats, wide, image, chosen, limits, out, alpha); break;
            case 4: draw_image<4>(splats, wide, image, chosen, limits, out, alpha); break;
            case 8: draw_image<8>(splats, wide, image, chosen, limits, out, alpha); break;
            default: draw_image<16>(splats, wide, image, chosen, limits, out, alpha); break;
        }
    }
}

}  // namespace sd::SD_ISA
