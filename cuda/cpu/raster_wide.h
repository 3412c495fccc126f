// Forward rasterizer of wide features (DINO, semantics: up to 512 channels and the depth): weights once, then matrix products.
//
// Work unit: one tile on one thread, its splats in batches of up to 320. The walk of tile_walk.h writes the blending weights
// W [pixels, splats] as lists per block (raster_wide_lists.h), then out [256, D] += W F with the products of matrix_vector.h or
// matrix_amx.h. Bytes: 64 + 4 D per pair read, 4 (D + 1) per pixel written; a thread holds about 576 D + 87,000 floats, 1.5 MB
// for D = 512, in its L2. Bound: multiply-adds of the product from about 64 channels on, below that the walk.
#pragma once
#include "matrix.h"
#include "matrix_amx.h"
#include "matrix_vector.h"

namespace sd::SD_ISA {

constexpr int kWideFrom = 17;  // channels: here 17 were as fast backward and 1.3 times as fast forward as two passes of up to 16

inline int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// Cuts the memory of one thread into arrays.
class Cutter {
  public:
    explicit Cutter(float* memory) : at_(memory) {}
    float* take(int64_t floats) {
        float* taken = at_;
        at_ += whole_lines(floats);
        return taken;
    }

  private:
    float* at_;
};

// Pixels of the tile in rows of the image; blocks without a splat were never written.
inline void write_wide(const WidePixels& pixels, const float* sums, int width, uint32_t started, const TileFrame& frame,
                       const sd_image& image, float* out, float* alpha) {
    alignas(64) float t[kBlocks][kLanes];
    for (int b = 0; b < kBlocks; ++b) store(t[b], pixels.behind[b]);
    for (int row = 0; row < frame.rows; ++row)
        for (int column = 0; column < frame.columns; ++column) {
            int b = TileFrame::block(column, row), l = TileFrame::lane(column, row);
            int64_t pixel = int64_t(frame.y0 + row) * image.width + frame.x0 + column;
            alpha[pixel] = 1.0f - t[b][l];
            const float* from = sums + int64_t(b * kLanes + l) * width;
            float* to = out + pixel * image.channels;
            for (int c = 0; c < image.channels; c += kLanes) {
                int n = least(kLanes, image.channels - c);
                Floats value = started >> b & 1 ? load(from + c) : Floats(0.0f);
                if (image.background) value = fma(t[b][l], load_first(image.background + c, n), value);
                store_first(to + c, value, n);
            }
        }
}

template <class Products>
inline void draw_wide(const sd_screen& screen, const sd_image& image, const sd_limits& limits, float* out, float* alpha) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    Splat* splats = scratch.array<Splat>(0, screen.count);
    pack_splats(screen, limits, nullptr, 0, splats, nullptr);
    const int width = padded_width(image.channels);
    const int64_t each = whole_lines(TileLists::floats(false) + int64_t(kWideBatch + kTilePixels) * width + sizeof(typename Products::Workspace) / 4 + 64);
    float* memory = scratch.array<float>(1, each * thread_count());
    parallel_items(grid.tiles, [&](int64_t tile, int worker) {
        typename Products::Session session;
        Cutter cutter(memory + each * worker);
        auto& work = *reinterpret_cast<typename Products::Workspace*>(cutter.take(sizeof(typename Products::Workspace) / 4));
        TileLists lists(cutter.take(TileLists::floats(false)), false);
        FeatureRows rows{cutter.take(int64_t(kWideBatch) * width), width};
        float* sums = cutter.take(int64_t(kTilePixels) * width);
        TileFrame frame(grid, static_cast<int>(tile));
        WidePixels pixels(frame, image);
        uint32_t started = 0;
        const int32_t *ids = image.pair_gaussian + image.tile_offsets[tile];
        const int count = image.tile_offsets[tile + 1] - image.tile_offsets[tile], batch = batch_size(count);
        for (int k = 0; k < count && pixels.alive; k += batch) {
            int n = least(batch, count - k);
            list_batch<Products>(splats, ids + k, n, frame, limits, pixels, lists);
            load_rows<Products>(image.features, image.channels, ids + k, n, lists.drawn, rows);
            for (int b = 0; b < kBlocks; ++b) {
                if (lists.count[b] == 0) continue;
                Products::blend(lists.block(b), rows, work, sums + int64_t(b) * kLanes * width, !(started >> b & 1));
                started |= 1u << b;
            }
        }
        write_wide(pixels, sums, width, started, frame, image, out, alpha);
    });
}

inline void raster_wide_forward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, float* out, float* alpha) {
#if defined(SD_HAS_AMX)
    if (matrix_path() == MatrixPath::kAmx) return draw_wide<AmxProducts<true>>(screen, image, limits, out, alpha);
    if (matrix_path() == MatrixPath::kAmxPlain) return draw_wide<AmxProducts<false>>(screen, image, limits, out, alpha);
#endif
    draw_wide<VectorProducts>(screen, image, limits, out, alpha);
}

}  // namespace sd::SD_ISA
