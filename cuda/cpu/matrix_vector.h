// Matrix products of wide features in vector registers, float32.
//
// A block is kLanes pixels; its list names the splats that are drawn in it, and their weights, a vector a splat. Three products:
//   blend   out[pixel, D] += weight x feature      four pixels x kPanelChannels channels in registers, splats without those pixels left out
//   dots    dot[splat, pixel] = feature . v        eight splats x a block in registers
//   pull    v_feature[splat, D] += weight x v      one splat x a panel in registers, pixels without weight left out
// Rows of features lie panel by panel (FeatureRows), so that what a block reads of one panel stays in L1. Bound: fused
// multiply-adds (blend, dots), loads from L1 (pull). An eighth to a half of the dense product: the lists are sparse.
#pragma once
#include "raster_wide_lists.h"

namespace sd::SD_ISA {

constexpr int kQuad = 4;                                   // pixels that share a load of a feature
constexpr int kQuads = kLanes / kQuad;
constexpr int kPanelVectors = kLanes == 16 ? kPanelChannels / 16 : 2;  // accumulators: kQuad x kPanelVectors registers
constexpr int kDotSplats = 8;

// A list for each four pixels of a block: only the splats that are drawn in one of them.
struct QuadLists {
    int32_t index[kQuads][kWideBatch];
    float weights[kQuads][kWideBatch][kQuad];
    int count[kQuads];
    QuadLists(const BlockList& list) {
        for (int q = 0; q < kQuads; ++q) {
            int n = 0;
            for (int e = 0; e < list.count; ++e) {
                const float* w = list.weights + e * kLanes + q * kQuad;
                int64_t bits[2];
                __builtin_memcpy(bits, w, sizeof bits);
                __builtin_memcpy(weights[q][n], w, sizeof bits);
                index[q][n] = list.index[e];
                n += (bits[0] | bits[1]) != 0;
            }
            count[q] = n;
        }
    }
};

template <int kVectors>
inline void blend_quad(const QuadLists& lists, int q, const float* rows, int stride, float* out, int out_stride, bool fresh) {
    Floats acc[kQuad][kVectors];
    for (int p = 0; p < kQuad; ++p)
        for (int v = 0; v < kVectors; ++v) acc[p][v] = fresh ? Floats(0.0f) : load(out + p * out_stride + v * kLanes);
    for (int e = 0; e < lists.count[q]; ++e) {
        const float* row = rows + lists.index[q][e] * stride;
        Floats f[kVectors];
        for (int v = 0; v < kVectors; ++v) f[v] = load(row + v * kLanes);
        for (int p = 0; p < kQuad; ++p) {
            Floats w = lists.weights[q][e][p];
            for (int v = 0; v < kVectors; ++v) acc[p][v] = fma(w, f[v], acc[p][v]);
        }
    }
    for (int p = 0; p < kQuad; ++p)
        for (int v = 0; v < kVectors; ++v) store(out + p * out_stride + v * kLanes, acc[p][v]);
}

struct VectorProducts {
    struct Workspace {
        alignas(64) float transposed[kMaxWidth * kLanes];  // v of one block, [D][kLanes]
    };
    struct Session {  // nothing to set up for a thread
        Session() {}
    };
    static Floats round_operand(Floats value) { return value; }
    static void convert_row(const float* from, int n, float* to) { copy_row(from, n, to); }

    static void blend(const BlockList& list, const FeatureRows& rows, Workspace&, float* out, bool fresh) {
        QuadLists quads(list);
        for (int c = 0; c < rows.width; c += kPanelChannels) {
            const float* panel = rows.panel(c);
            int stride = rows.panel_width(c);
            for (int at = 0; at < stride; at += kPanelVectors * kLanes)
                for (int q = 0; q < kQuads; ++q) {
                    float* to = out + q * kQuad * rows.width + c + at;
                    const float* from = panel + at;
                    int vectors = least(kPanelVectors, (stride - at) / kLanes);
                    if (vectors == 1) blend_quad<1>(quads, q, from, stride, to, rows.width, fresh);
                    if (vectors == 2) blend_quad<2>(quads, q, from, stride, to, rows.width, fresh);
                    if constexpr (kPanelVectors > 2) {
                        if (vectors == 3) blend_quad<3>(quads, q, from, stride, to, rows.width, fresh);
                        if (vectors == 4) blend_quad<4>(quads, q, from, stride, to, rows.width, fresh);
                    }
                }
        }
    }

    // v [kLanes, width] of the block; called before dots and pull of a block
    static void prepare(const float* v, int width, Workspace& work) {
        const float* lines[kLanes];
        for (int p = 0; p < kLanes; ++p) lines[p] = v + p * width;
        Floats columns[16];
        for (int c = 0; c < width; c += 16) {
            load_columns(lines, kLanes, 16, columns);
            for (int k = 0; k < 16; ++k) store(work.transposed + (c + k) * kLanes, columns[k]);
            for (int p = 0; p < kLanes; ++p) lines[p] += 16;
        }
    }

    static void dots(const BlockList& list, const FeatureRows& rows, Workspace& work, float* out) {
        for (int e = 0; e < list.count; e += kDotSplats) {
            Floats acc[kDotSplats];
            for (auto& value : acc) value = 0.0f;
            for (int c = 0; c < rows.width; c += kPanelChannels) {
                int stride = rows.panel_width(c);
                const float* row[kDotSplats];
                for (int s = 0; s < kDotSplats; ++s) row[s] = rows.panel(c) + list.index[e + s] * stride;
                const float* v = work.transposed + c * kLanes;
                for (int k = 0; k < stride; ++k) {
                    Floats value = load(v + k * kLanes);
                    for (int s = 0; s < kDotSplats; ++s) acc[s] = fma(Floats(row[s][k]), value, acc[s]);
                }
            }
            for (int s = 0; s < kDotSplats; ++s) store(out + (e + s) * kLanes, acc[s]);
        }
    }

    template <int kVectors>
    static void pull_row(const float* weights, const int* pixels, int count, const float* v, int width, float* slot) {
        Floats acc[kVectors];
        for (int k = 0; k < kVectors; ++k) acc[k] = load(slot + k * kLanes);
        for (int i = 0; i < count; ++i) {
            Floats w = weights[pixels[i]];
            const float* row = v + pixels[i] * width;
            for (int k = 0; k < kVectors; ++k) acc[k] = fma(w, load(row + k * kLanes), acc[k]);
        }
        for (int k = 0; k < kVectors; ++k) store(slot + k * kLanes, acc[k]);
    }

    static void pull(const BlockList& list, const float* v, int width, Workspace&, float* slots) {
        for (int e = 0; e < list.count; ++e) {
            const float* weights = list.weights + e * kLanes;
            float* slot = slots + int64_t(list.index[e]) * width;
            int pixels[kLanes], count = 0;
            for (int p = 0; p < kLanes; ++p) pixels[count] = p, count += weights[p] != 0.0f;
            int c = 0;
            for (; c + 8 * kLanes <= width; c += 8 * kLanes) pull_row<8>(weights, pixels, count, v + c, width, slot + c);
            for (; c + 2 * kLanes <= width; c += 2 * kLanes) pull_row<2>(weights, pixels, count, v + c, width, slot + c);
            for (; c < width; c += kLanes) pull_row<1>(weights, pixels, count, v + c, width, slot + c);
        }
    }
};

}  // namespace sd::SD_ISA
