// What one tile of wide features works on: per block of kLanes pixels the splats that are drawn in it and their blending weights,
// and the features of a batch of splats, panel by panel.
//
// Weights are worked out once, front to back, for a batch of up to kBatch splats of a tile; a block's list leaves out the splats
// that do not touch it (60 % of the pairs of block and splat at a standard deviation of 1.5 px).
#pragma once
#include "splat.h"

namespace sd::SD_ISA {

constexpr int kBatch = 320;     // splats whose weights are kept at a time; a multiple of kListStep
constexpr int kListStep = 16;   // lists are padded to a multiple with weights of zero
constexpr int kPanelChannels = 64;  // channels of a panel
constexpr int kMaxWidth = 528;  // channels, padded: 512 and the depth
constexpr int kRowsAhead = 3;  // splats between the prefetch of a row of features and its use
constexpr int kTilePixels = kTile * kTile;

inline int padded_width(int channels) { return (channels + 15) / 16 * 16; }

struct BlockList {
    int32_t* index;  // place of the splat in its batch
    float* weights;  // [kLanes] a splat
    int count;
};

// [kBatch, width] features of a batch, each panel of 64 channels (the last one may be narrower) contiguous.
struct FeatureRows {
    float* data;
    int width;
    int panel_width(int channel) const { return least(kPanelChannels, width - channel); }
    float* panel(int channel) const { return data + int64_t(kBatch) * channel; }
};

// n floats and zeros up to a multiple of 16
inline void copy_row(const float* from, int n, float* to) {
    int c = 0;
    for (; c + kLanes <= n; c += kLanes) store(to + c, load(from + c));
    for (; c < (n + 15) / 16 * 16; c += kLanes) store(to + c, load_first(from + c, most(0, least(kLanes, n - c))));
}

// The lists of all blocks of a tile for one batch.
struct TileLists {
    int32_t* index;   // [kBlocks, kBatch]
    float* weights;   // [kBlocks, kBatch, kLanes]
    float* ratios;    // alpha / (1 - alpha), negative where alpha was clamped, or null
    uint32_t* drawn;  // [kBatch] bit b: the splat is in the list of block b
    int count[kBlocks];
    static_assert(kBlocks <= 32, "one bit a block");

    static int64_t floats(bool backward) {
        return int64_t(kBlocks) * kBatch * (1 + kLanes * (backward ? 2 : 1)) + kBatch;
    }
    TileLists(float* memory, bool backward) {
        index = reinterpret_cast<int32_t*>(memory);
        drawn = reinterpret_cast<uint32_t*>(memory + kBlocks * kBatch);
        weights = memory + (kBlocks + 1) * kBatch;
        ratios = backward ? weights + int64_t(kBlocks) * kBatch * kLanes : nullptr;
    }
    BlockList block(int b) const { return {index + b * kBatch, weights + int64_t(b) * kBatch * kLanes, count[b]}; }
    void pad() {
        for (int b = 0; b < kBlocks; ++b) {
            int32_t* at = index + b * kBatch;
            for (int e = count[b]; count[b] && e < (count[b] + kListStep - 1) / kListStep * kListStep; ++e) {
                at[e] = at[count[b] - 1];
                store(weights + (int64_t(b) * kBatch + e) * kLanes, 0.0f);
            }
        }
    }
};

// Adds splat k of the batch to the lists of the blocks in one half of the tile; returns their bits.
template <class Products>
inline uint32_t list_half(const Splat& s, int k, const TileFrame& frame, int half, const Cover& cover, const sd_limits& limits,
                          Floats lane_column, Floats lane_row, Transmittance& live, TileLists& lists) {
    HalfExponent exponent(s, frame, half, cover.first, lane_column, lane_row);
    const Floats alpha_min = limits.alpha_min, alpha_max = limits.alpha_max, t_min = limits.transmittance_min;
    uint32_t bits = 0;
    for (int r = cover.first; r <= cover.last; ++r, exponent.step()) {
        int b = half * kBlockRows + r;
        Floats raw = exponent.alpha(), alpha = min(raw, alpha_max), t = live.t[b];
        Mask counts = alpha >= alpha_min;
        Floats w = alpha * t, next = t - w;
        Mask drawn = counts & (next > t_min);
        live.t[b] = negate_where(and_not(counts, drawn), select(drawn, next, t), t);
        int64_t at = int64_t(b) * kBatch + lists.count[b];
        lists.index[at] = k;
        store(lists.weights + at * kLanes, zero_unless(drawn, Products::round_operand(w)));
        if (lists.ratios) {
            Floats ratio = select(raw <= alpha_max, alpha * reciprocal(1.0f - alpha), Floats(-1.0f));
            store(lists.ratios + at * kLanes, zero_unless(drawn, ratio));
        }
        uint32_t kept = any(drawn);
        lists.count[b] += static_cast<int>(kept), bits |= kept << b;
    }
    return bits;
}

// Fills the lists with the batch `ids`; false when every pixel of the tile is finished.
template <class Products>
inline bool list_batch(const Splat* splats, const int32_t* ids, int n, const TileFrame& frame, const sd_limits& limits,
                       Transmittance& live, TileLists& lists) {
    const Floats lane_column = lane_columns(), lane_row = lane_rows();
    for (int& count : lists.count) count = 0;
    bool alive = live.shrink();
    for (int k = 0; k < n; ++k) {
        prefetch(&splats[ids[least(k + kLookAhead, n - 1)]]);
        lists.drawn[k] = 0;
        if (!alive) continue;
        const Splat& s = splats[ids[k]];
        Cover cover(s, frame, live);
        for (int half = 0; half < kHalves && !cover.empty(); ++half)
            if (Cover::has(s, frame, half))
                lists.drawn[k] |= list_half<Products>(s, k, frame, half, cover, limits, lane_column, lane_row, live, lists);
        if (k % kWindowPeriod == kWindowPeriod - 1) alive = live.shrink();
    }
    lists.pad();
    return alive;
}

// Features of the drawn splats of a batch, as the products want them.
template <class Products>
inline void load_rows(const float* features, int channels, const int32_t* ids, int n, const uint32_t* drawn, const FeatureRows& rows) {
    for (int k = 0; k < n; ++k) {
        int ahead = least(k + kRowsAhead, n - 1);
        for (int c = 0; drawn[ahead] && c < channels; c += 16) prefetch(features + int64_t(ids[ahead]) * channels + c);
        if (!drawn[k]) continue;
        const float* from = features + int64_t(ids[k]) * channels;
        for (int c = 0; c < channels; c += kPanelChannels)
            Products::convert_row(from + c, least(kPanelChannels, channels - c), rows.panel(c) + k * rows.panel_width(c));
    }
}

// Splats per batch so that the batches of a tile are equally long.
inline int batch_size(int count) {
    int batches = (count + kBatch - 1) / kBatch;
    return batches ? (count + batches - 1) / batches : 0;
}

}  // namespace sd::SD_ISA
