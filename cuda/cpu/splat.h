// What the tile kernels read: one 64-byte record per Gaussian, and the geometry of a 16x16 tile cut into vector blocks.
//
// A vector covers a block 8 pixels wide and kLanes / 8 high (8x2 on AVX-512, 8x1 otherwise): small splats waste fewer lanes than
// on 16x1 rows. Records are packed once per pass from the arrays `project` wrote: 24 bytes read, 64 written per drawn Gaussian.
#pragma once
#include "../bindings.h"
#include "order.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int kBlockWidth = 8;
constexpr int kBlockHeight = kLanes / kBlockWidth;
constexpr int kHalves = kTile / kBlockWidth;
constexpr int kBlockRows = kTile / kBlockHeight;
constexpr int kBlocks = kHalves * kBlockRows;
constexpr int64_t kPackChunk = 2048;
constexpr int kLookAhead = 8;      // pairs between a prefetch and its use
constexpr int kWindowPeriod = 32;  // pairs between two looks for finished rows

struct alignas(64) Splat {
    float x, y;
    float qxx, qxy, qyy, log2_opacity;  // alpha = 2^(log2_opacity + qxx dx^2 + qxy dx dy + qyy dy^2)
    int32_t row_first, row_last, column_first, column_last;  // pixels whose alpha may reach alpha_min
    float color[4];                                          // up to 4 channels; wider features live in rows of their own
    float unused[2];
};

inline void pack_lanes(const sd_screen& screen, const sd_limits& limits, int64_t i, int n, Splat* splats) {
    const float *m = screen.means2d + 2 * i, *q = screen.conics + 3 * i;
    Floats opacity = load_first(screen.opacities2d + i, n);
    if (!any((opacity >= limits.alpha_min) & first_lanes(n))) return;
    Floats x = load_strided(m, 2, n), y = load_strided(m + 1, 2, n);
    Floats a = load_strided(q, 3, n), b = load_strided(q + 1, 3, n), c = load_strided(q + 2, 3, n);
    Footprint shape(a, b, c, opacity, limits);
    // far outside any image is as good as outside; this also keeps the integers in range
    auto pixel = [](Floats v) { return min(max(v, -16384.0f), 1.0e6f); };
    float f[6][kLanes];
    int32_t box[4][kLanes];
    store(f[0], x), store(f[1], y);
    store(f[2], a * (-0.5f * kLog2E)), store(f[3], b * -kLog2E), store(f[4], c * (-0.5f * kLog2E));
    store(f[5], log2(max(opacity, limits.alpha_min)));
    store_ints(box[0], pixel(ceil(y - shape.ey - 0.5f))), store_ints(box[1], pixel(floor(y + shape.ey - 0.5f)));
    store_ints(box[2], pixel(ceil(x - shape.ex - 0.5f))), store_ints(box[3], pixel(floor(x + shape.ex - 0.5f)));
    for (int k = 0; k < n; ++k) {
        Splat& s = splats[i + k];
        s.x = f[0][k], s.y = f[1][k], s.qxx = f[2][k], s.qxy = f[3][k], s.qyy = f[4][k], s.log2_opacity = f[5][k];
        s.row_first = box[0][k], s.row_last = box[1][k], s.column_first = box[2][k], s.column_last = box[3][k];
    }
}

// Channels [first, first + count) of the features, padded with zeros: in the records (width <= 4) or in `wide` [N, width].
struct Channels {
    int first, count, width;
};

inline void pack_splats(const sd_screen& screen, const sd_limits& limits, const float* features, int channels, Channels chosen,
                        bool geometry, Splat* splats, float* wide) {
    parallel_chunks(screen.count, kPackChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end && geometry; i += kLanes)
            pack_lanes(screen, limits, i, static_cast<int>(least<int64_t>(kLanes, end - i)), splats);
        for (int64_t i = begin; i < end; ++i) {
            if (!(screen.opacities2d[i] >= limits.alpha_min)) continue;
            const float* from = features + i * channels + chosen.first;
            float* to = wide ? wide + i * chosen.width : splats[i].color;
            for (int k = 0; k < chosen.count; ++k) to[k] = from[k];
            for (int k = chosen.count; k < (wide ? chosen.width : 4); ++k) to[k] = 0.0f;
        }
    });
}

// Widths the kernels are compiled for; the next chunk of `left` channels uses the narrowest that holds it, at most 16.
inline Channels next_channels(int first, int total) {
    int left = total - first, width = left <= 3 ? 3 : left == 4 ? 4 : left <= 8 ? 8 : 16;
    return {first, least(left, width), width};
}

struct TileGrid {
    int width, height, tiles_x, tiles;
    TileGrid(int w, int h) : width(w), height(h), tiles_x((w + kTile - 1) / kTile), tiles(tiles_x * ((h + kTile - 1) / kTile)) {}
};

// One tile of the image and which of its pixels exist.
struct TileFrame {
    int x0, y0, columns, rows;
    TileFrame(const TileGrid& grid, int tile)
        : x0(tile % grid.tiles_x * kTile), y0(tile / grid.tiles_x * kTile), columns(least(kTile, grid.width - x0)),
          rows(least(kTile, grid.height - y0)) {}
    // block and lane of pixel (column, row) of the tile
    static int block(int column, int row) { return column / kBlockWidth * kBlockRows + row / kBlockHeight; }
    static int lane(int column, int row) { return row % kBlockHeight * kBlockWidth + column % kBlockWidth; }
};

// Values of the pixels (column .. column + kLanes - 1, row) of a tile, into blocks; column is a multiple of kLanes.
inline void put_row(float (*blocks)[kLanes], int column, int row, Floats values) {
    alignas(64) float lanes[kLanes];
    store(lanes, values);
    for (int k = 0; k < kLanes; k += kBlockWidth)
        __builtin_memcpy(&blocks[TileFrame::block(column + k, row)][TileFrame::lane(0, row)], lanes + k, kBlockWidth * sizeof(float));
}

inline Floats lane_columns() {
    return kBlockHeight == 1 ? iota() : iota() - floor(iota() * (1.0f / kBlockWidth)) * static_cast<float>(kBlockWidth);
}
inline Floats lane_rows() { return kBlockHeight == 1 ? Floats(0.0f) : floor(iota() * (1.0f / kBlockWidth)); }

// Transmittance of the pixels of a tile: positive while a pixel is alive, its negative once it is finished.
struct Transmittance {
    Floats t[kBlocks];
    int first = 0, last = kBlockRows - 1;  // block rows that may still be alive
    Transmittance(const TileFrame& frame, const sd_image& image) {
        Floats row = lane_rows(), column = lane_columns();
        for (int half = 0; half < kHalves; ++half)
            for (int r = 0; r < kBlockRows; ++r) {
                Mask exists = (column + float(half * kBlockWidth) < float(frame.columns)) &
                              (row + float(r * kBlockHeight) < float(frame.rows));
                t[half * kBlockRows + r] = select(exists, Floats(1.0f), Floats(-1.0f));
            }
        alignas(64) float lanes[kLanes];
        for (int row = 0; row < frame.rows && image.mask; ++row)
            for (int column = 0; column < frame.columns; ++column) {
                if (image.mask[int64_t(frame.y0 + row) * image.width + frame.x0 + column]) continue;
                Floats& block = t[TileFrame::block(column, row)];
                store(lanes, block), lanes[TileFrame::lane(column, row)] = -1.0f, block = load(lanes);
            }
    }
    bool shrink() {  // false when every pixel is finished
        auto dead = [&](int r) {
            Mask alive = t[r] > 0.0f;
            for (int half = 1; half < kHalves; ++half) alive = alive | (t[half * kBlockRows + r] > 0.0f);
            return !any(alive);
        };
        while (first <= last && dead(first)) ++first;
        while (last >= first && dead(last)) --last;
        return first <= last;
    }
};

// The part of a tile that a splat covers, and alpha on it.
struct Cover {
    int first, last;  // block rows
    Cover(const Splat& s, const TileFrame& frame, const Transmittance& live) {
        int top = s.row_first - frame.y0, bottom = s.row_last - frame.y0;
        first = most(live.first, most(top, 0) / kBlockHeight);
        last = bottom < 0 ? -1 : least(live.last, least(bottom, kTile - 1) / kBlockHeight);
    }
    bool empty() const { return first > last; }
    static bool has(const Splat& s, const TileFrame& frame, int half) {
        int left = frame.x0 + half * kBlockWidth;
        return s.column_last >= left && s.column_first < left + kBlockWidth;
    }
};

// Exponent of a splat along one column half: log2 alpha = constant + dy (linear + qyy dy).
struct HalfExponent {
    Floats dx, constant, linear, qyy, dy;
    HalfExponent(const Splat& s, const TileFrame& frame, int half, int first_row, Floats lane_column, Floats lane_row) {
        dx = lane_column + (static_cast<float>(frame.x0 + half * kBlockWidth) + 0.5f - s.x);
        dy = lane_row + (static_cast<float>(frame.y0 + first_row * kBlockHeight) + 0.5f - s.y);
        constant = fma(Floats(s.qxx) * dx, dx, s.log2_opacity);
        linear = Floats(s.qxy) * dx;
        qyy = s.qyy;
    }
    Floats alpha() const { return exp2(fma(dy, fma(qyy, dy, linear), constant)); }
    void step() { dy = dy + static_cast<float>(kBlockHeight); }
};

}  // namespace sd::SD_ISA
