// Backward rasterizer of wide features: the same weights once more, then v_F = W^T V and the dots c . v = F V^T as products.
//
// The dots stand where raster_backward.h adds up cv: rest -= w cv, pull = w cv - alpha / (1 - alpha) rest, front to back, then the
// six moments of pull. Weights and the gradient of the image are rounded as the products round them (two bfloat16 terms, or not at
// all), so that what is subtracted from `rest` is what the forward pass added, and nothing is left over that 1 / (1 - alpha) blows up.
//
// No atomics: a pair owns a row of D floats for v_F. Rows of all pairs would take 4 D M bytes, so tiles go in bands of at most
// kBandFloats floats of rows; after a band each Gaussian adds its rows to v_F, in tile order. The moments (32 bytes a pair) are
// added up at the end. Nothing depends on the number of threads.
// Bytes: 4 D read, 8 D written and read per pair. Bound: multiply-adds, and memory for the rows of D = 512.
#pragma once
#include "raster_backward.h"
#include "raster_wide.h"

namespace sd::SD_ISA {

constexpr int64_t kBandFloats = int64_t(1) << 25;  // 128 MB
constexpr int kMomentFloats = 8;                   // six moments and |dL/d(centre)|

// What a thread knows about the pixels of its tile, block by block.
struct TilePull {
    float* v;     // [256, width] gradient of the image, clipped and rounded
    float* dots;  // [kBlocks, kWideBatch, kLanes] feature . v
    Floats v_alpha[kBlocks], rest[kBlocks];
};

inline float clip_row(const float* v, int channels, float bound) {
    Floats largest = 0.0f;
    for (int c = 0; c < channels; c += kLanes) largest = max(largest, abs(load_first(v + c, least(kLanes, channels - c))));
    alignas(64) float lanes[kLanes];
    store(lanes, largest);
    float found = 0.0f;
    for (float lane : lanes) found = most(found, lane);
    return found > bound ? bound / found : 1.0f;
}

// Loads v, v_alpha and rest; adds transmittance * v_image to background [width], or NULL.
template <class Products>
inline void load_wide_gradient(const TileFrame& frame, const sd_image& image, const ImageGradient& from, int width, TilePull& pull,
                               float* background) {
    alignas(64) float v_alpha[kBlocks][kLanes] = {}, rest[kBlocks][kLanes] = {};
    const int channels = image.channels;
    const bool clipped = !__builtin_isinf(from.bound);
    if (frame.rows < kTile || frame.columns < kTile || image.mask)
        for (int i = 0; i < kTilePixels * width; i += kLanes) store(pull.v + i, 0.0f);
    for (int row = 0; row < frame.rows; ++row)
        for (int column = 0; column < frame.columns; ++column) {
            int b = TileFrame::block(column, row), l = TileFrame::lane(column, row);
            int64_t pixel = int64_t(frame.y0 + row) * image.width + frame.x0 + column;
            const float *v = from.v_image + pixel * channels, *shown = from.image + pixel * channels;
            float factor = clipped ? clip_row(v, channels, from.bound) : 1.0f, t = 1.0f - from.alpha[pixel];
            float* to = pull.v + int64_t(b * kLanes + l) * width;
            bool masked = image.mask && !image.mask[pixel];
            Floats total = 0.0f;
            for (int c = 0; c < width; c += kLanes) {
                int n = most(0, least(kLanes, channels - c));
                Floats value = Products::round_operand(load_first(v + c, n) * factor);
                if (!masked) store(to + c, value);
                total = fma(value, load_first(shown + c, n), total);
                if (background) store(background + c, fma(value, t, load(background + c)));
            }
            rest[b][l] = sum(total);
            if (from.v_alpha) v_alpha[b][l] = from.v_alpha[pixel], rest[b][l] += from.v_alpha[pixel] * from.alpha[pixel];
        }
    for (int b = 0; b < kBlocks; ++b) pull.v_alpha[b] = load(v_alpha[b]), pull.rest[b] = load(rest[b]);
}

// Moments of splat k over the blocks that draw it; place[b] is where its turn in the list of block b is.
inline void pull_moments(const Splat& s, uint32_t drawn, const TileFrame& frame, const TileLists& lists, TilePull& pull, int* place,
                         bool absolute, float* moments) {
    const Floats lane_column = lane_columns(), lane_row = lane_rows();
    Floats sums[16];
    for (auto& value : sums) value = 0.0f;
    for (; drawn; drawn &= drawn - 1) {
        int b = __builtin_ctz(drawn), half = b / kBlockRows, r = b % kBlockRows;
        int64_t at = (int64_t(b) * kWideBatch + place[b]++) * kLanes;
        Floats dx = lane_column + (static_cast<float>(frame.x0 + half * kBlockWidth) + 0.5f - s.x);
        Floats dy = lane_row + (static_cast<float>(frame.y0 + r * kBlockHeight) + 0.5f - s.y);
        Floats share = load(lists.weights + at) * (load(pull.dots + at) + pull.v_alpha[b]), ratio = load(lists.ratios + at);
        Floats rest = pull.rest[b] - share;
        pull.rest[b] = rest;
        Floats found = zero_unless(ratio >= 0.0f, fnma(ratio, rest, share)), x = found * dx, y = found * dy;
        sums[kOne] = sums[kOne] + found, sums[kX] = sums[kX] + x, sums[kY] = sums[kY] + y;
        sums[kXX] = fma(x, dx, sums[kXX]), sums[kXY] = fma(x, dy, sums[kXY]), sums[kYY] = fma(y, dy, sums[kYY]);
        if (absolute) {  // the record's conic is scaled by -log2(e) / 2 and -log2(e)
            Floats by_x = fma(Floats(s.qxy), dy, (2.0f * s.qxx) * dx), by_y = fma(2.0f * s.qyy, dy, Floats(s.qxy) * dx);
            sums[kMoments] = sums[kMoments] + abs(found * by_x), sums[kMoments + 1] = sums[kMoments + 1] + abs(found * by_y);
        }
    }
    alignas(64) float out[16];
    sums16(sums, out);
    __builtin_memcpy(moments, out, kMomentFloats * sizeof(float));
}

// What a call works on and writes, for all tiles.
struct WidePass {
    const sd_screen& screen;
    const sd_image& image;
    const sd_limits& limits;
    const ImageGradient& from;
    const ScreenPull& out;
    const Splat* splats;
    int width;
    float* moments;   // [M, 8]
    uint8_t* drawn;   // [M] the pair has a row and moments
    int32_t* offset;  // [N + 1] and
    int32_t* ranks;   // [M] of index_pairs
    int32_t* next;    // [N] first pair of a Gaussian that is not in v_F yet
};

// One tile: rows of v_F and moments of its pairs. rows [pairs of the tile, width] or NULL.
template <class Products>
inline void pull_wide_tile(const WidePass& pass, const TileFrame& frame, int64_t tile, float* memory, float* slots, float* background) {
    typename Products::Session session;
    Cutter cutter(memory);
    auto& work = *reinterpret_cast<typename Products::Workspace*>(cutter.take(sizeof(typename Products::Workspace) / 4));
    TileLists lists(cutter.take(TileLists::floats(true)), true);
    FeatureRows rows{cutter.take(int64_t(kWideBatch) * pass.width), pass.width};
    TilePull pull;
    pull.v = cutter.take(int64_t(kTilePixels) * pass.width), pull.dots = cutter.take(int64_t(kBlocks) * kWideBatch * kLanes);
    const sd_image& image = pass.image;
    load_wide_gradient<Products>(frame, image, pass.from, pass.width, pull, background);
    WidePixels pixels(frame, image);
    const int32_t begin = image.tile_offsets[tile], *ids = image.pair_gaussian + begin;
    const int count = image.tile_offsets[tile + 1] - begin, batch = batch_size(count);
    int k = 0;
    for (; k < count && pixels.alive; k += batch) {
        int n = least(batch, count - k);
        list_batch<Products>(pass.splats, ids + k, n, frame, pass.limits, pixels, lists);
        load_rows<Products>(image.features, image.channels, ids + k, n, lists.drawn, rows);
        float* batch_slots = slots ? slots + int64_t(k) * pass.width : nullptr;
        for (int i = 0; i < n && slots; ++i)
            for (int c = 0; lists.drawn[i] && c < pass.width; c += kLanes) store(batch_slots + int64_t(i) * pass.width + c, 0.0f);
        for (int b = 0; b < kBlocks; ++b) {
            if (lists.count[b] == 0) continue;
            const float* v = pull.v + int64_t(b) * kLanes * pass.width;
            Products::prepare(v, pass.width, work);
            Products::dots(lists.block(b), rows, work, pull.dots + int64_t(b) * kWideBatch * kLanes);
            if (slots) Products::pull(lists.block(b), v, pass.width, work, batch_slots);
        }
        int place[kBlocks] = {};
        for (int i = 0; i < n; ++i) {
            pass.drawn[begin + k + i] = lists.drawn[i] != 0;
            if (lists.drawn[i])
                pull_moments(pass.splats[ids[k + i]], lists.drawn[i], frame, lists, pull, place, pass.out.absolute != nullptr,
                             pass.moments + int64_t(begin + k + i) * kMomentFloats);
        }
    }
    for (; k < count; ++k) pass.drawn[begin + k] = 0;
}

// Adds the rows of pairs [begin, end), which `slots` begins with, to v_F.
inline void add_band(const WidePass& pass, int64_t begin, int64_t end, const float* slots) {
    const int channels = pass.image.channels, width = pass.width;
    parallel_chunks(pass.screen.count, 256, [&](int64_t first, int64_t last, int64_t) {
        alignas(64) float total[kMaxWidth];
        for (int64_t g = first; g < last; ++g) {
            int32_t i = begin == 0 ? pass.offset[g] : pass.next[g], stop = pass.offset[g + 1];
            bool fresh = i == pass.offset[g], any = fresh && begin == 0 && i == stop;
            float* to = pass.out.features + g * channels;
            if (i == stop && !any) continue;
            for (int c = 0; c < width; c += kLanes)
                store(total + c, fresh ? Floats(0.0f) : load_first(to + c, most(0, least(kLanes, channels - c))));
            for (; i < stop && pass.ranks[i] < end; ++i) {
                any = true;
                const float* slot = slots + (pass.ranks[i] - begin) * width;
                for (int c = 0; pass.drawn[pass.ranks[i]] && c < width; c += kLanes) store(total + c, load(total + c) + load(slot + c));
            }
            pass.next[g] = i;
            for (int c = 0; any && c < channels; c += kLanes) store_first(to + c, load(total + c), least(kLanes, channels - c));
        }
    });
}

// Adds up the moments of each Gaussian and applies the chain rule.
inline void gather_moments(const WidePass& pass) {
    parallel_chunks(pass.screen.count, 2048, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t g = first; g < last; ++g) {
            float s[kMomentFloats] = {};
            for (int32_t i = pass.offset[g]; i < pass.offset[g + 1]; ++i) {
                if (!pass.drawn[pass.ranks[i]]) continue;
                for (int k = 0; k < kMomentFloats; ++k) s[k] += pass.moments[int64_t(pass.ranks[i]) * kMomentFloats + k];
            }
            const float* conic = pass.screen.conics + 3 * g;
            float opacity = pass.screen.opacities2d[g];
            pass.out.means2d[2 * g] = conic[0] * s[kX] + conic[1] * s[kY];
            pass.out.means2d[2 * g + 1] = conic[1] * s[kX] + conic[2] * s[kY];
            pass.out.conics[3 * g] = -0.5f * s[kXX], pass.out.conics[3 * g + 1] = -s[kXY], pass.out.conics[3 * g + 2] = -0.5f * s[kYY];
            pass.out.opacities2d[g] = opacity > 0.0f ? s[kOne] / opacity : 0.0f;
            for (int k = 0; k < 2 && pass.out.absolute; ++k) pass.out.absolute[2 * g + k] = kLn2 * s[kMoments + k];
        }
    });
}

template <class Products>
inline void pull_wide(const sd_screen& screen, const sd_image& image, const sd_limits& limits, const ImageGradient& from,
                      const ScreenPull& out, float* v_background) {
    Scratch scratch;
    TileGrid grid(image.width, image.height);
    const int64_t pairs = image.tile_offsets[grid.tiles];
    Splat* splats = scratch.array<Splat>(0, screen.count);
    pack_splats(screen, limits, nullptr, 0, splats, nullptr);
    const int width = padded_width(image.channels);
    WidePass pass{screen, image, limits, from, out, splats, width, scratch.array<float>(2, pairs * kMomentFloats),
                  scratch.array<uint8_t>(6, pairs), scratch.array<int32_t>(3, screen.count + 1), scratch.array<int32_t>(4, pairs),
                  scratch.array<int32_t>(7, screen.count)};
    const int64_t each = whole_lines(TileLists::floats(true) + int64_t(kWideBatch + kTilePixels) * width + int64_t(kBlocks) * kWideBatch * kLanes +
                         sizeof(typename Products::Workspace) / 4 + 64);
    float* memory = scratch.array<float>(1, each * thread_count());
    float* backgrounds = v_background ? scratch.array<float>(5, int64_t(grid.tiles) * width) : nullptr;
    for (int64_t i = 0; i < int64_t(grid.tiles) * width && backgrounds; ++i) backgrounds[i] = 0.0f;
    for (int first = 0, last = 0; first < grid.tiles; first = last) {
        const int64_t begin = image.tile_offsets[first];
        for (last = first + 1; last < grid.tiles && (image.tile_offsets[last + 1] - begin) * width <= kBandFloats;) ++last;
        float* slots = out.features ? scratch.array<float>(8, (image.tile_offsets[last] - begin) * width) : nullptr;
        parallel_items(last - first + 1, [&](int64_t item, int worker) {
            if (item == 0) return first == 0 ? index_pairs(image.pair_gaussian, pairs, screen.count, pass.offset, pass.ranks) : void();
            int64_t tile = first + item - 1, at = image.tile_offsets[tile] - begin;
            pull_wide_tile<Products>(pass, TileFrame(grid, static_cast<int>(tile)), tile, memory + each * worker,
                                     slots ? slots + at * width : nullptr, backgrounds ? backgrounds + tile * width : nullptr);
        });
        if (slots) add_band(pass, begin, image.tile_offsets[last], slots);
    }
    gather_moments(pass);
    for (int k = 0; k < image.channels && v_background; ++k) {
        double total = 0.0;
        for (int tile = 0; tile < grid.tiles; ++tile) total += backgrounds[int64_t(tile) * width + k];
        v_background[k] = static_cast<float>(total);
    }
}

inline void raster_wide_backward(const sd_screen& screen, const sd_image& image, const sd_limits& limits, const ImageGradient& from,
                                 const ScreenPull& out, float* v_background) {
#if defined(SD_HAS_AMX)
    if (matrix_path() == MatrixPath::kAmx) return pull_wide<AmxProducts<true>>(screen, image, limits, from, out, v_background);
    if (matrix_path() == MatrixPath::kAmxPlain) return pull_wide<AmxProducts<false>>(screen, image, limits, from, out, v_background);
#endif
    pull_wide<VectorProducts>(screen, image, limits, from, out, v_background);
}

}  // namespace sd::SD_ISA
