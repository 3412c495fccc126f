// Depth order and binning: which Gaussians each 16x16 tile draws, front to back.
//
// Work unit: one Gaussian. Sorting N depths once (radix, 3 x 11 bits) and dealing them in depth order into tiles replaces a sort
// of all M pairs. Bytes: 40 read per Gaussian for its tile spans, then 8 N per sort pass and about 4 N + 8 M for dealing.
// Bound: latency of random writes into T lists. Spans are exact: a tile row cuts the ellipse {alpha >= alpha_min} into an
// interval, widened by a hundredth of a pixel for rounding (the raster kernel tests alpha itself).
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int kTile = 16;
constexpr int64_t kSpanChunk = 4096;  // Gaussians per item of the span pass
constexpr int kMaxDealers = 64;
constexpr float kSlackPx = 0.01f;

// The ellipse {alpha >= alpha_min} around a splat: half sizes and what a horizontal cut needs.
struct Footprint {
    Floats a, b, cut2, det, ex, ey, slope;  // slope: dy of the rightmost point is slope * ex
    Footprint(Floats qa, Floats qb, Floats qc, Floats opacity, const sd_limits& limits)
        : a(qa), b(qb), det(difference_of_products(qa, qc, qb, qb)) {
        cut2 = max(2.0f * kLn2 * log2(max(opacity, limits.alpha_min) * (1.0f / limits.alpha_min)) * 1.0001f, 1e-4f);
        ex = sqrt(cut2 * qc / det) + kSlackPx, ey = sqrt(cut2 * qa / det) + kSlackPx;
        slope = -qb / qc;
    }
    // x interval, relative to the centre, over dy in [low, high]
    void cut(Floats low, Floats high, Floats& left, Floats& right) const {
        Floats inverse = 1.0f / a, left0, right0, left1, right1;
        line(low, inverse, left0, right0);
        line(high, inverse, left1, right1);
        Floats tip = slope * ex;
        right = select((tip > low) & (tip < high), ex, max(right0, right1) + kSlackPx);
        left = select((-tip > low) & (-tip < high), -ex, min(left0, left1) - kSlackPx);
    }

  private:
    void line(Floats dy, Floats inverse, Floats& left, Floats& right) const {
        Floats half = sqrt(max(fnma(det * dy, dy, cut2 * a), 0.0f)), middle = -b * dy;
        left = (middle - half) * inverse, right = (middle + half) * inverse;
    }
};

struct TileSpan {
    uint16_t first, last;  // tile columns; first > last: none
};

struct Visible {
    int32_t gaussian, span, tile_row, rows;
};

struct BinState {  // in workspace buffer 0; the other arrays in the buffers named below
    int64_t visible;
    int32_t tiles_x, tiles, dealers;
    enum Buffer { kState, kSpans, kVisible, kKeys, kOrder, kKeysOther, kOrderOther, kHistogram, kChunks };
};

struct SpanChunk {
    int64_t visible, spans;  // counts, then offsets
};

// Pixel rows [first, last] and tile rows of a vector of splats; rows are empty where the splat is culled.
struct RowRange {
    float first[kLanes], last[kLanes];
    int32_t tile_first[kLanes], tile_rows[kLanes];
    RowRange(Floats y, Floats ey, Mask seen, int height) {
        Floats low = max(ceil(y - ey - 0.5f), 0.0f), high = min(floor(y + ey - 0.5f), height - 1.0f);
        seen = seen & (high >= low);
        Floats top = floor(low * (1.0f / kTile)), bottom = floor(high * (1.0f / kTile));
        store(first, low), store(last, high);
        store_ints(tile_first, zero_unless(seen, top));
        store_ints(tile_rows, zero_unless(seen, bottom - top + 1.0f));
    }
};

struct SpanPass {
    const sd_screen& screen;
    const float *depths, *extents;
    int width, height, tiles_x;
    const sd_limits& limits;

    struct Lanes {
        Floats x, y;
        Footprint shape;
        RowRange rows;
    };

    Lanes load(int64_t i, int n) const {
        Floats x = load_strided(screen.means2d + 2 * i, 2, n), y = load_strided(screen.means2d + 2 * i + 1, 2, n);
        const float* q = screen.conics + 3 * i;
        Footprint shape(load_strided(q, 3, n), load_strided(q + 1, 3, n), load_strided(q + 2, 3, n),
                        load_first(screen.opacities2d + i, n), limits);
        Mask seen = (load_strided(extents + 2 * i, 2, n) > 0.0f) & (shape.ex > 0.0f) & first_lanes(n);
        return {x, y, shape, RowRange(y, shape.ey, seen, height)};
    }

    SpanChunk measure(int64_t begin, int64_t end) const {
        SpanChunk total = {0, 0};
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            if (!any((load_strided(extents + 2 * i, 2, n) > 0.0f) & first_lanes(n))) continue;
            Lanes l = load(i, n);
            for (int k = 0; k < n; ++k) total.visible += l.rows.tile_rows[k] > 0, total.spans += l.rows.tile_rows[k];
        }
        return total;
    }

    void write(int64_t begin, int64_t end, SpanChunk at, TileSpan* spans, Visible* visible, uint32_t* keys) const {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            if (!any((load_strided(extents + 2 * i, 2, n) > 0.0f) & first_lanes(n))) continue;
            Lanes l = load(i, n);
            int32_t offset[kLanes], tallest = 0;
            for (int k = 0; k < n; ++k) {
                int rows = l.rows.tile_rows[k];
                tallest = most(tallest, rows);
                offset[k] = static_cast<int32_t>(at.spans);
                if (rows == 0) continue;
                visible[at.visible] = {static_cast<int32_t>(i + k), offset[k], l.rows.tile_first[k], rows};
                __builtin_memcpy(&keys[at.visible], &depths[i + k], 4);
                at.visible += 1, at.spans += rows;
            }
            for (int row = 0; row < tallest; ++row) write_row(l, row, n, offset, spans);
        }
    }

    void write_row(const Lanes& l, int row, int n, const int32_t* offset, TileSpan* spans) const {
        float top[kLanes];
        for (int k = 0; k < kLanes; ++k) top[k] = k < n ? static_cast<float>((l.rows.tile_first[k] + row) * kTile) : 0.0f;
        Floats first = max(Floats(sd::SD_ISA::load(l.rows.first)), sd::SD_ISA::load(top));
        Floats last = min(Floats(sd::SD_ISA::load(l.rows.last)), sd::SD_ISA::load(top) + (kTile - 1.0f));
        Floats left, right;
        l.shape.cut(first + 0.5f - l.y, last + 0.5f - l.y, left, right);
        // a tile is hit when one of its pixel centres, 16 t + 0.5 .. 16 t + 15.5, lies in the interval
        Floats low = max(ceil((l.x + left - (kTile - 0.5f)) * (1.0f / kTile)), 0.0f);
        Floats high = min(floor((l.x + right - 0.5f) * (1.0f / kTile)), tiles_x - 1.0f);
        Mask none = high < low;
        int32_t a[kLanes], b[kLanes];
        store_ints(a, select(none, Floats(1.0f), low)), store_ints(b, select(none, Floats(0.0f), high));
        for (int k = 0; k < n; ++k)
            if (row < l.rows.tile_rows[k]) spans[offset[k] + row] = {static_cast<uint16_t>(a[k]), static_cast<uint16_t>(b[k])};
    }
};

// Stable radix sort of (key, value), 11 bits a pass; parts of the input are counted and dealt side by side, which leaves the
// result independent of their number. Returns where the sorted values are.
inline int32_t* sort_by_key(uint32_t* keys, int32_t* values, uint32_t* keys_other, int32_t* values_other, int64_t n, int parts,
                            uint32_t* histogram) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    int64_t part = (n + parts - 1) / parts;
    for (int shift = 0; shift < 32; shift += kBits) {
        parallel_items(parts, [&](int64_t p, int) {
            uint32_t* h = histogram + p * kBuckets;
            for (int k = 0; k < kBuckets; ++k) h[k] = 0;
            for (int64_t i = p * part, end = least(n, i + part); i < end; ++i) ++h[(keys[i] >> shift) & (kBuckets - 1)];
        });
        uint32_t total = 0, largest = 0;
        for (int k = 0; k < kBuckets; ++k) {
            uint32_t before = total;
            for (int p = 0; p < parts; ++p) {
                uint32_t here = histogram[p * kBuckets + k];
                histogram[p * kBuckets + k] = total;
                total += here;
            }
            largest = most(largest, total - before);
        }
        if (largest == n) continue;  // all keys agree in these bits
        parallel_items(parts, [&](int64_t p, int) {
            uint32_t* h = histogram + p * kBuckets;
            for (int64_t i = p * part, end = least(n, i + part); i < end; ++i) {
                uint32_t at = h[(keys[i] >> shift) & (kBuckets - 1)]++;
                keys_other[at] = keys[i], values_other[at] = values[i];
            }
        });
        uint32_t* k = keys;
        keys = keys_other, keys_other = k;
        int32_t* v = values;
        values = values_other, values_other = v;
    }
    return values;
}

// Calls body(tile, gaussian) for the pairs of visible[order[begin .. end)] in depth order.
template <class Body>
inline void each_pair(const Visible* visible, const int32_t* order, const TileSpan* spans, int64_t begin, int64_t end, int tiles_x,
                      Body&& body) {
    for (int64_t i = begin; i < end; ++i) {
        if (i + 8 < end) prefetch(&visible[order[i + 8]]);
        if (i + 4 < end) prefetch(&spans[visible[order[i + 4]].span]);
        const Visible& v = visible[order[i]];
        for (int row = 0; row < v.rows; ++row) {
            TileSpan span = spans[v.span + row];
            int base = (v.tile_row + row) * tiles_x;
            for (int tx = span.first; tx <= span.last; ++tx) body(base + tx, v.gaussian);
        }
    }
}

// Counts the pairs of each tile; leaves in the histogram where each dealer writes its first pair of a tile. Returns M.
inline int64_t count_pairs(const BinState& state, const Visible* visible, const int32_t* order, const TileSpan* spans,
                           uint32_t* histogram, int32_t* tile_offsets) {
    int64_t part = (state.visible + state.dealers - 1) / state.dealers;
    parallel_items(state.dealers, [&](int64_t d, int) {
        uint32_t* h = histogram + d * state.tiles;
        for (int t = 0; t < state.tiles; ++t) h[t] = 0;
        each_pair(visible, order, spans, least(d * part, state.visible), least((d + 1) * part, state.visible), state.tiles_x,
                  [&](int tile, int) { ++h[tile]; });
    });
    int64_t pairs = 0;
    for (int t = 0; t < state.tiles; ++t) {
        tile_offsets[t] = static_cast<int32_t>(pairs);
        for (int d = 0; d < state.dealers; ++d) {
            uint32_t& slot = histogram[static_cast<int64_t>(d) * state.tiles + t];
            uint32_t here = slot;
            slot = static_cast<uint32_t>(pairs);
            pairs += here;
        }
    }
    tile_offsets[state.tiles] = static_cast<int32_t>(pairs);
    return pairs;
}

inline int64_t bin_count(const sd_screen& screen, const float* depths, const float* extents, int width, int height,
                         const sd_limits& limits, int32_t* tile_offsets, void** state_out) {
    Scratch scratch;
    BinState& state = *scratch.array<BinState>(BinState::kState, 1);
    state.tiles_x = (width + kTile - 1) / kTile;
    state.tiles = state.tiles_x * ((height + kTile - 1) / kTile);
    SpanPass pass{screen, depths, extents, width, height, state.tiles_x, limits};

    int64_t chunks = (screen.count + kSpanChunk - 1) / kSpanChunk;
    SpanChunk* offsets = scratch.array<SpanChunk>(BinState::kChunks, chunks + 1);
    parallel_chunks(screen.count, kSpanChunk,
                    [&](int64_t begin, int64_t end, int64_t chunk) { offsets[chunk] = pass.measure(begin, end); });
    SpanChunk total = {0, 0};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        SpanChunk here = offsets[chunk];
        offsets[chunk] = total;
        total.visible += here.visible, total.spans += here.spans;
    }
    state.visible = total.visible;
    TileSpan* spans = scratch.array<TileSpan>(BinState::kSpans, total.spans);
    Visible* visible = scratch.array<Visible>(BinState::kVisible, total.visible);
    uint32_t* keys = scratch.array<uint32_t>(BinState::kKeys, total.visible);
    int32_t* order = scratch.array<int32_t>(BinState::kOrder, total.visible);
    parallel_chunks(screen.count, kSpanChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        pass.write(begin, end, offsets[chunk], spans, visible, keys);
    });
    for (int64_t i = 0; i < total.visible; ++i) order[i] = static_cast<int32_t>(i);

    int dealers = state.dealers = least(thread_count(), kMaxDealers);
    uint32_t* histogram =
        scratch.array<uint32_t>(BinState::kHistogram, static_cast<int64_t>(dealers) * most<int64_t>(state.tiles, 2048));
    int32_t* sorted = sort_by_key(keys, order, scratch.array<uint32_t>(BinState::kKeysOther, total.visible),
                                  scratch.array<int32_t>(BinState::kOrderOther, total.visible), total.visible, dealers, histogram);
    if (sorted != order)
        __builtin_memcpy(order, sorted, sizeof(int32_t) * static_cast<size_t>(total.visible));

    int64_t pairs = count_pairs(state, visible, order, spans, histogram, tile_offsets);
    *state_out = scratch.keep();
    return pairs;
}

inline void bin_fill(void* kept, int32_t* pair_gaussian) {
    Scratch scratch(kept);
    const BinState& state = *scratch.array<BinState>(BinState::kState, 1);
    const Visible* visible = scratch.array<Visible>(BinState::kVisible, 0);
    const int32_t* order = scratch.array<int32_t>(BinState::kOrder, 0);
    const TileSpan* spans = scratch.array<TileSpan>(BinState::kSpans, 0);
    uint32_t* histogram = scratch.array<uint32_t>(BinState::kHistogram, 0);
    int64_t part = (state.visible + state.dealers - 1) / state.dealers;
    parallel_items(state.dealers, [&](int64_t d, int) {
        uint32_t* at = histogram + d * state.tiles;
        each_pair(visible, order, spans, least(d * part, state.visible), least((d + 1) * part, state.visible), state.tiles_x,
                  [&](int tile, int gaussian) { pair_gaussian[at[tile]++] = gaussian; });
    });
}

}  // namespace sd::SD_ISA
