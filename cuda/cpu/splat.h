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

struct alignas(64) Splat {
    float x, y;
    float qxx, qxy, qyy, log2_opacity;  // alpha = 2^(log2_opacity + qxx dx^2 + qxy dx dy + qyy dy^2)
    float reach2, narrowing, slant;  // where alpha >= alpha_min: x within slant dy +- sqrt(reach2 - narrowing dy^2); a little widened
    float color[4];                                          // up to 4 channels; wider features live in rows of their own
    float unused[3];
};

// Records of the Gaussians [i, i + n), with up to 4 channels of `features` [N, channels] (or null).
inline void pack_lanes(const sd_screen& screen, const sd_limits& limits, int64_t i, int n, const float* features, int channels,
                       Splat* splats) {
    const float *m = screen.means2d + 2 * i, *q = screen.conics + 3 * i;
    Floats opacity = load_first(screen.opacities2d + i, n), in[16];
    if (!any((opacity >= limits.alpha_min) & first_lanes(n))) return;
    Floats a = load_strided(q, 3, n), b = load_strided(q + 1, 3, n), c = load_strided(q + 2, 3, n), inverse = 1.0f / a;
    Footprint shape(a, b, c, opacity, limits);
    in[0] = load_strided(m, 2, n), in[1] = load_strided(m + 1, 2, n);
    in[2] = a * (-0.5f * kLog2E), in[3] = b * -kLog2E, in[4] = c * (-0.5f * kLog2E);
    in[5] = log2(max(opacity, limits.alpha_min));
    in[6] = min(fma(shape.cut2 * inverse, 1.002f, 0.02f), 1e30f), in[7] = shape.det * inverse * inverse, in[8] = -b * inverse;
    for (int k = 0; k < 7; ++k)
        in[9 + k] = features && k < least(channels, 4) ? load_strided(features + i * channels + k, channels, n) : Floats(0.0f);
    float* rows[kLanes];
    for (int k = 0; k < n; ++k) rows[k] = reinterpret_cast<float*>(splats + i + k);
    store_columns(rows, n, 16, in);
}

// Widths the narrow kernels are compiled for.
inline int kernel_width(int channels) { return channels <= 3 ? 3 : channels == 4 ? 4 : channels <= 8 ? 8 : 16; }

// Records of all Gaussians; features (or null) go into the records, or into `wide` [N, kernel_width], padded with zeros.
inline void pack_splats(const sd_screen& screen, const sd_limits& limits, const float* features, int channels, Splat* splats,
                        float* wide) {
    const int width = kernel_width(channels);
    parallel_chunks(screen.count, kPackChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes)
            pack_lanes(screen, limits, i, static_cast<int>(least<int64_t>(kLanes, end - i)), wide ? nullptr : features, channels, splats);
        for (int64_t i = begin; i < end && wide; ++i)
            for (int k = 0; k < width && screen.opacities2d[i] >= limits.alpha_min; ++k)
                wide[i * width + k] = k < channels ? features[i * channels + k] : 0.0f;
    });
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

// The pixels of one block of a tile in arrays [H, W, channels].
struct PixelBlock {
    int64_t first;  // the block's first pixel
    int width, columns, rows;  // of the image; those of the block that exist
    PixelBlock(const TileFrame& frame, int block, int image_width) : width(image_width) {
        int x = block / kBlockRows * kBlockWidth, y = block % kBlockRows * kBlockHeight;
        first = int64_t(frame.y0 + y) * width + frame.x0 + x;
        columns = least(kBlockWidth, frame.columns - x), rows = least(kBlockHeight, frame.rows - y);
    }
    bool whole() const { return columns == kBlockWidth && rows == kBlockHeight; }

    // 1 for pixels that exist and are not masked (mask [H, W] or null: 0 hides), else 0
    Floats shown(const uint8_t* mask) const {
        if (whole() && !mask) return 1.0f;
        alignas(64) float value[kLanes];
        for (int l = 0; l < kLanes; ++l) value[l] = exists(l) && (!mask || mask[first + offset(l)]) ? 1.0f : 0.0f;
        return sd::SD_ISA::load(value);
    }

    // `count` channels of every pixel from `array` on; pixels that do not exist are 0
    void load(const float* array, int channels, Floats* values, int count) const {
        const float* p = array + first * channels;
        if (whole() && channels == 1) {
            values[0] = load_block1(p, width);
        } else if (whole() && channels == 3 && count == 3) {
            load_block3(p, int64_t(width) * 3, values);
        } else {
            static const float kNothing[16] = {};
            const float* pixels[kLanes];
            for (int l = 0; l < kLanes; ++l) pixels[l] = exists(l) ? p + offset(l) * channels : kNothing;
            load_columns(pixels, kLanes, count, values);
        }
    }
    void store(float* array, int channels, const Floats* values, int count) const {
        float* p = array + first * channels;
        if (whole() && channels == 1) return store_block1(p, width, values[0]);
        if (whole() && channels == 3 && count == 3) return store_block3(p, int64_t(width) * 3, values);
        float nowhere[16];
        float* pixels[kLanes];
        for (int l = 0; l < kLanes; ++l) pixels[l] = exists(l) ? p + offset(l) * channels : nowhere;
        store_columns(pixels, kLanes, count, values);
    }

  private:
    bool exists(int l) const { return l % kBlockWidth < columns && l / kBlockWidth < rows; }
    int64_t offset(int l) const { return int64_t(l / kBlockWidth) * width + l % kBlockWidth; }
};

inline Floats lane_columns() {
    return kBlockHeight == 1 ? iota() : iota() - floor(iota() * (1.0f / kBlockWidth)) * static_cast<float>(kBlockWidth);
}
inline Floats lane_rows() { return kBlockHeight == 1 ? Floats(0.0f) : floor(iota() * (1.0f / kBlockWidth)); }

}  // namespace sd::SD_ISA
