// What one tile of wide features works on: per block of kLanes pixels the splats that are drawn in it and their blending weights,
// and the features of a batch of splats, panel by panel.
//
// Weights are worked out once, front to back, for a batch of up to kWideBatch splats of a tile; a block's list leaves out the splats
// that do not touch it (60 % of the pairs of block and splat at a standard deviation of 1.5 px).
#pragma once
#include "tile_walk.h"

namespace sd::SD_ISA {

constexpr int kWideBatch = 320;     // splats whose weights are kept at a time; a multiple of kListStep
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

// [kWideBatch, width] features of a batch, each panel of 64 channels (the last one may be narrower) contiguous.
struct FeatureRows {
    float* data;
    int width;
    int panel_width(int channel) const { return least(kPanelChannels, width - channel); }
    float* panel(int channel) const { return data + int64_t(kWideBatch) * channel; }
};

// n floats and zeros up to a multiple of 16
inline void copy_row(const float* from, int n, float* to) {
    int c = 0;
    for (; c + kLanes <= n; c += kLanes) store(to + c, load(from + c));
    for (; c < (n + 15) / 16 * 16; c += kLanes) store(to + c, load_first(from + c, most(0, least(kLanes, n - c))));
}

// The lists of all blocks of a tile for one batch.
struct TileLists {
    int32_t* index;   // [kBlocks, kWideBatch]
    float* weights;   // [kBlocks, kWideBatch, kLanes]
    float* ratios;    // alpha / (1 - alpha), negative where alpha was clamped, or null
    uint32_t* drawn;  // [kWideBatch] bit b: the splat is in the list of block b
    int count[kBlocks];
    static_assert(kBlocks <= 32, "one bit a block");

    static int64_t floats(bool backward) {
        return int64_t(kBlocks) * kWideBatch * (1 + kLanes * (backward ? 2 : 1)) + kWideBatch;
    }
    TileLists(float* memory, bool backward) {
        index = reinterpret_cast<int32_t*>(memory);
        drawn = reinterpret_cast<uint32_t*>(memory + kBlocks * kWideBatch);
        weights = memory + (kBlocks + 1) * kWideBatch;
        ratios = backward ? weights + int64_t(kBlocks) * kWideBatch * kLanes : nullptr;
    }
    BlockList block(int b) const { return {index + b * kWideBatch, weights + int64_t(b) * kWideBatch * kLanes, count[b]}; }
    void pad() {
        for (int b = 0; b < kBlocks; ++b) {
            int32_t* at = index + b * kWideBatch;
            for (int e = count[b]; count[b] && e < (count[b] + kListStep - 1) / kListStep * kListStep; ++e) {
                at[e] = at[count[b] - 1];
                store(weights + (int64_t(b) * kWideBatch + e) * kLanes, 0.0f);
            }
        }
    }
};

struct WidePixels : TilePixels {
    Floats behind[kBlocks];  // transmittance behind what was drawn
    WidePixels(const TileFrame& frame, const sd_image& image) : TilePixels(frame, image) {
        for (auto& block : behind) block = 1.0f;
    }
};

// Appends what the splats of `batch`, which begin at place `first` of the wide batch, do to one block; false when it is finished.
template <class Products>
inline bool list_block(const SplatBatch& batch, int first, int b, const sd_limits& limits, WidePixels& pixels, TileLists& lists) {
    const Floats alpha_max = limits.alpha_max;
    return walk_block(batch, b, limits, pixels, [&](const TileSplat&, const Blend& blend) {
        pixels.behind[b] = select(blend.drawn, blend.after, pixels.behind[b]);
        int64_t at = int64_t(b) * kWideBatch + lists.count[b];
        lists.index[at] = first + blend.i;
        store(lists.weights + at * kLanes, zero_unless(blend.drawn, Products::round_operand(blend.weight)));
        if (lists.ratios) {
            Floats ratio = select(blend.raw <= alpha_max, blend.alpha * reciprocal(1.0f - blend.alpha), Floats(-1.0f));
            store(lists.ratios + at * kLanes, zero_unless(blend.drawn, ratio));
        }
        uint32_t kept = any(blend.drawn);
        lists.count[b] += static_cast<int>(kept), lists.drawn[first + blend.i] |= kept << b;
    });
}

// Fills the lists with the splats `ids`, front to back.
template <class Products>
inline void list_batch(const Splat* splats, const int32_t* ids, int n, const TileFrame& frame, const sd_limits& limits,
                       WidePixels& pixels, TileLists& lists) {
    for (int& count : lists.count) count = 0;
    for (int k = 0; k < n; ++k) lists.drawn[k] = 0;
    SplatBatch batch;
    for (int k = 0; k < n && pixels.alive; k += kBatch) {
        batch.load<3, false>(splats, nullptr, ids + k, least(kBatch, n - k), n - k, frame, pixels.alive);
        walk_blocks(batch, pixels, [&](int block) { return list_block<Products>(batch, k, block, limits, pixels, lists); });
    }
    lists.pad();
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
    int batches = (count + kWideBatch - 1) / kWideBatch;
    return batches ? (count + batches - 1) / batches : 0;
}

}  // namespace sd::SD_ISA
