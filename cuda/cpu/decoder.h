// The Gaussian decoder of anchors: three 35 -> 32 -> {10, 70, 30} networks and the activations that turn them into slots
// (Momentum-GS section 1, after Scaffold-GS), forward and backward.
//
// Work unit: kLanes anchors, one per lane, so that weights are broadcast and no sum crosses lanes; 6880 multiply-adds each
// forward, three times that backward. Bytes: 284 read and 560 written per anchor. Bound: multiply-add issue, then the scattered
// stores. Weight gradients are products of two activation blocks of 128 anchors; each of at most 32 slices of the anchors sums
// its own, and the slices are added in order, so the bytes do not depend on the number of threads.
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int kSlots = 10, kFeatures = 32, kInputs = kFeatures + 3, kHidden = 32, kHeads = 3;
constexpr int kHeadOutputs[kHeads] = {10, 70, 30};
constexpr int kOutputs = 110;
constexpr int kAlphaAt = 0, kShapeAt = 10, kColorAt = 80;  // first output of each head
constexpr int kAnchorBlock = 128;                          // anchors per block of the weight gradients
constexpr int kBlockVectors = kAnchorBlock / kLanes;
constexpr int64_t kMaxSlices = 32;

// out[r] = bias[r] + sum_k weights[r * row + k * column] x[k] for r < kRows
template <int kRows>
inline void affine_rows(const float* weights, int row, int column, int inputs, const Floats* x, const float* bias, Floats* out) {
    Floats total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = bias ? bias[r] : 0.0f;
    for (int k = 0; k < inputs; ++k)
        for (int r = 0; r < kRows; ++r) total[r] = fma(weights[r * row + k * column], x[k], total[r]);
    for (int r = 0; r < kRows; ++r) out[r] = total[r];
}

inline void affine(const float* weights, int row, int column, int rows, int inputs, const Floats* x, const float* bias, Floats* out) {
    int r = 0;
    auto at = [&](int first) { return bias ? bias + first : nullptr; };
    for (; r + 8 <= rows; r += 8) affine_rows<8>(weights + r * row, row, column, inputs, x, at(r), out + r);
    if (rows - r >= 4) affine_rows<4>(weights + r * row, row, column, inputs, x, at(r), out + r), r += 4;
    if (rows - r >= 2) affine_rows<2>(weights + r * row, row, column, inputs, x, at(r), out + r), r += 2;
    if (rows - r >= 1) affine_rows<1>(weights + r * row, row, column, inputs, x, at(r), out + r);
}

// Rows visible[first .. first + n) of an array with `width` columns, or n consecutive rows from `first`.
template <class T> struct RowPointers {
    T* at[kLanes];
    RowPointers(T* base, const int64_t* visible, int64_t first, int n, int width) {
        for (int i = 0; i < n; ++i) at[i] = base + visible[first + i] * width;
    }
    RowPointers(T* base, int64_t first, int n, int width) {
        for (int i = 0; i < n; ++i) at[i] = base + (first + i) * width;
    }
};

// One anchor per lane: inputs, hidden layers and raw outputs.
struct DecoderLanes {
    Floats z[kInputs], hidden[kHeads][kHidden], raw[kOutputs];
    Floats position[3], offset[3 * kSlots], inverse_distance, span[3], base[3];  // span = exp(s[0:3]), base = exp(s[3:6])

    DecoderLanes(const sd_anchors& a, int64_t first, int n) {
        Floats log_scale[6], square = 0.0f, away[3];
        auto read = [&](const float* from, int width, Floats* to) {
            load_columns(RowPointers<const float>(from, a.visible, first, n, width).at, n, width, to);
        };
        read(a.features, kFeatures, z), read(a.positions, 3, position), read(a.log_scales, 6, log_scale);
        read(a.offsets, 3 * kSlots, offset);
        for (int k = 0; k < 3; ++k) {
            away[k] = position[k] - a.camera_center[k];
            square = fma(away[k], away[k], square);
        }
        inverse_distance = 1.0f / max(sqrt(square), 1e-12f);
        for (int k = 0; k < 3; ++k) z[kFeatures + k] = away[k] * inverse_distance;
        for (int k = 0; k < 3; ++k) span[k] = exp(log_scale[k]), base[k] = exp(log_scale[3 + k]);
    }

    void run(const sd_decoder& d) {
        for (int head = 0, at = 0; head < kHeads; at += kHeadOutputs[head++]) {
            affine(d.w1[head], kInputs, 1, kHidden, kInputs, z, d.b1[head], hidden[head]);
            for (auto& h : hidden[head]) h = max(h, 0.0f);
            affine(d.w2[head], kHidden, 1, kHeadOutputs[head], kHidden, hidden[head], d.b2[head], raw + at);
        }
    }
};

inline Floats hyperbolic_tangent(Floats x) { return fma(2.0f, sigmoid(2.0f * x), -1.0f); }

struct UnitQuaternion {
    Floats q[4], inverse_norm;
    explicit UnitQuaternion(const Floats* raw) {
        Floats square = raw[0] * raw[0];
        for (int k = 1; k < 4; ++k) square = fma(raw[k], raw[k], square);
        inverse_norm = 1.0f / max(sqrt(square), 1e-12f);
        for (int k = 0; k < 4; ++k) q[k] = raw[k] * inverse_norm;
    }
    void pull(const Floats* v, Floats* out) const {  // gradient of the raw quaternion
        Floats along = v[0] * q[0] + v[1] * q[1] + v[2] * q[2] + v[3] * q[3];
        for (int k = 0; k < 4; ++k) out[k] = fnma(along, q[k], v[k]) * inverse_norm;
    }
};

// The slots of kLanes anchors, or their gradients: [slot][component].
struct SlotLanes {
    Floats means[3 * kSlots], scales[3 * kSlots], quats[4 * kSlots], alphas[kSlots], colors[3 * kSlots];
    template <class Move> void each(const sd_slots& s, Move&& move) {
        move(s.means, 3 * kSlots, means), move(s.scales, 3 * kSlots, scales), move(s.quats, 4 * kSlots, quats);
        move(s.alphas, kSlots, alphas), move(s.colors, 3 * kSlots, colors);
    }
};

inline void decode_forward(const sd_anchors& anchors, const sd_decoder& decoder, const sd_slots& out) {
    parallel_chunks(anchors.count, kAnchorBlock, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            DecoderLanes l(anchors, i, n);
            l.run(decoder);
            SlotLanes s;
            for (int k = 0; k < 3 * kSlots; ++k) {
                s.means[k] = fma(l.offset[k], l.span[k % 3], l.position[k % 3]);
                s.scales[k] = l.base[k % 3] * sigmoid(l.raw[kShapeAt + k / 3 * 7 + k % 3]);
                s.colors[k] = sigmoid(l.raw[kColorAt + k]);
            }
            for (int slot = 0; slot < kSlots; ++slot) {
                UnitQuaternion unit(l.raw + kShapeAt + 7 * slot + 3);
                for (int k = 0; k < 4; ++k) s.quats[4 * slot + k] = unit.q[k];
                s.alphas[slot] = hyperbolic_tangent(l.raw[kAlphaAt + slot]);
            }
            s.each(out, [&](float* to, int width, const Floats* values) {
                store_columns(RowPointers<float>(to, i, n, width).at, n, width, values);
            });
        }
    });
}

struct AnchorGradient {
    float *positions, *features, *offsets, *log_scales;  // zero in the rows of anchors that are not visible
    void clear(int64_t rows) const {
        parallel_chunks(rows, 4096, [&](int64_t begin, int64_t end, int64_t) {
            auto zero = [&](float* p, int64_t width) { __builtin_memset(p + begin * width, 0, (end - begin) * width * sizeof(float)); };
            zero(positions, 3), zero(features, kFeatures), zero(offsets, 3 * kSlots), zero(log_scales, 6);
        });
    }
};

// Activations and their gradients of a block of anchors, for the weight gradients: [value][anchor]. Row counts are padded to 4.
struct ActivationBlock {
    alignas(64) float inputs[36][kAnchorBlock];  // z, then a row of ones for the bias
    alignas(64) float hidden[kHeads][kHidden][kAnchorBlock];
    alignas(64) float v_hidden[kHeads][kHidden][kAnchorBlock];
    alignas(64) float v_raw[kHeads][72][kAnchorBlock];
};

// Gradients of the raw outputs, and of offsets, positions and log scales, from those of the decoded slots.
struct SlotPull {
    Floats raw[kOutputs], offset[3 * kSlots], mean[3] = {0.0f, 0.0f, 0.0f};
    Floats log_scale[6] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};

    SlotPull(const DecoderLanes& l, const SlotLanes& v) {
        for (int i = 0; i < 3 * kSlots; ++i) {
            int k = i % 3, at = kShapeAt + i / 3 * 7 + k;
            offset[i] = v.means[i] * l.span[k];
            mean[k] = mean[k] + v.means[i], log_scale[k] = fma(offset[i], l.offset[i], log_scale[k]);
            Floats gate = sigmoid(l.raw[at]), size = v.scales[i] * l.base[k] * gate;
            log_scale[3 + k] = log_scale[3 + k] + size;
            raw[at] = size * (1.0f - gate);
            Floats color = sigmoid(l.raw[kColorAt + i]);
            raw[kColorAt + i] = v.colors[i] * color * (1.0f - color);
        }
        for (int slot = 0; slot < kSlots; ++slot) {
            int at = kShapeAt + 7 * slot + 3;
            UnitQuaternion(l.raw + at).pull(v.quats + 4 * slot, raw + at);
            Floats alpha = hyperbolic_tangent(l.raw[kAlphaAt + slot]);
            raw[kAlphaAt + slot] = v.alphas[slot] * fnma(alpha, alpha, 1.0f);
        }
    }
};

// Pulls the gradients of kLanes anchors back to the anchors and leaves the activations in the block at `lane`.
inline void decode_lanes_backward(const sd_anchors& a, const sd_decoder& d, const sd_slots& v_slots, int64_t first, int n, int lane,
                                  const AnchorGradient& out, ActivationBlock& block) {
    DecoderLanes l(a, first, n);
    l.run(d);
    SlotLanes v;
    v.each(v_slots, [&](const float* from, int width, Floats* to) {
        for (int k = 0; k < width && !from; ++k) to[k] = 0.0f;
        if (from) load_columns(RowPointers<const float>(from, first, n, width).at, n, width, to);
    });
    const SlotPull pull(l, v);
    Floats v_z[kInputs];
    for (auto& value : v_z) value = 0.0f;
    for (int head = 0, at = 0; head < kHeads; at += kHeadOutputs[head++]) {
        Floats v_hidden[kHidden], v_part[kInputs];
        affine(d.w2[head], 1, kHidden, kHidden, kHeadOutputs[head], pull.raw + at, nullptr, v_hidden);
        for (int k = 0; k < kHidden; ++k) v_hidden[k] = zero_unless(l.hidden[head][k] > 0.0f, v_hidden[k]);
        affine(d.w1[head], 1, kInputs, kInputs, kHidden, v_hidden, nullptr, v_part);
        for (int k = 0; k < kInputs; ++k) v_z[k] = v_z[k] + v_part[k];
        for (int k = 0; k < kHidden; ++k) {
            store(block.hidden[head][k] + lane, l.hidden[head][k]);
            store(block.v_hidden[head][k] + lane, v_hidden[k]);
        }
        for (int k = 0; k < kHeadOutputs[head]; ++k) store(block.v_raw[head][k] + lane, pull.raw[at + k]);
    }
    for (int k = 0; k < kInputs; ++k) store(block.inputs[k] + lane, l.z[k]);
    store(block.inputs[kInputs] + lane, 1.0f);

    const Floats *direction = l.z + kFeatures, *v_direction = v_z + kFeatures;
    Floats along = v_direction[0] * direction[0] + v_direction[1] * direction[1] + v_direction[2] * direction[2];
    Floats v_position[3];
    for (int k = 0; k < 3; ++k)
        v_position[k] = fma(fnma(along, direction[k], v_direction[k]), l.inverse_distance, pull.mean[k]);
    auto write = [&](float* to, int width, const Floats* values) {
        store_columns(RowPointers<float>(to, a.visible, first, n, width).at, n, width, values);
    };
    write(out.features, kFeatures, v_z), write(out.log_scales, 6, pull.log_scale);
    write(out.offsets, 3 * kSlots, pull.offset), write(out.positions, 3, v_position);
}

// One slice's sums, packed per head: w1 with b1 as a 36th column, w2 with padding rows, b2.
struct WeightSums {
    float first[kHeads][kHidden][36];
    float second[kHeads][72][kHidden];
    float bias[kHeads][80];
};

// sums[r][c] += rows[r] . columns[c] over `vectors` vectors; both counts multiples of 4
inline void add_products(const float (*rows)[kAnchorBlock], int row_count, const float (*columns)[kAnchorBlock], int column_count,
                         int vectors, float* sums, int stride) {
    for (int r = 0; r < row_count; r += 4)
        for (int c = 0; c < column_count; c += 4) {
            Floats total[16];
            for (auto& value : total) value = 0.0f;
            for (int v = 0; v < vectors * kLanes; v += kLanes) {
                Floats x[4];
                for (int j = 0; j < 4; ++j) x[j] = load(columns[c + j] + v);
                for (int i = 0; i < 4; ++i) {
                    Floats y = load(rows[r + i] + v);
                    for (int j = 0; j < 4; ++j) total[4 * i + j] = fma(y, x[j], total[4 * i + j]);
                }
            }
            float found[16];
            sums16(total, found);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) sums[(r + i) * stride + c + j] += found[4 * i + j];
        }
}

inline void add_weight_gradient(const ActivationBlock& block, int vectors, WeightSums& sums) {
    for (int head = 0; head < kHeads; ++head) {
        int rows = (kHeadOutputs[head] + 3) / 4 * 4;
        add_products(block.v_hidden[head], kHidden, block.inputs, 36, vectors, sums.first[head][0], 36);
        add_products(block.v_raw[head], rows, block.hidden[head], kHidden, vectors, sums.second[head][0], kHidden);
        for (int r = 0; r < kHeadOutputs[head]; ++r) {
            Floats total = 0.0f;
            for (int v = 0; v < vectors * kLanes; v += kLanes) total = total + load(block.v_raw[head][r] + v);
            sums.bias[head][r] += sum(total);
        }
    }
}

inline void write_weight_gradient(const WeightSums* slices, int64_t count, const sd_decoder_gradient& out) {
    auto total = [&](auto&& value) {
        float result = 0.0f;
        for (int64_t s = 0; s < count; ++s) result += value(slices[s]);
        return result;
    };
    for (int head = 0; head < kHeads; ++head) {
        for (int r = 0; r < kHidden; ++r) {
            for (int k = 0; k < kInputs; ++k)
                out.w1[head][r * kInputs + k] = total([&](const WeightSums& s) { return s.first[head][r][k]; });
            out.b1[head][r] = total([&](const WeightSums& s) { return s.first[head][r][kInputs]; });
        }
        for (int r = 0; r < kHeadOutputs[head]; ++r) {
            for (int k = 0; k < kHidden; ++k)
                out.w2[head][r * kHidden + k] = total([&](const WeightSums& s) { return s.second[head][r][k]; });
            out.b2[head][r] = total([&](const WeightSums& s) { return s.bias[head][r]; });
        }
    }
}

inline void decode_backward(const sd_anchors& anchors, const sd_decoder& decoder, const sd_slots& v, const AnchorGradient& out,
                            const sd_decoder_gradient& weights) {
    Scratch scratch;
    int64_t blocks = (anchors.count + kAnchorBlock - 1) / kAnchorBlock;
    int64_t per_slice = (blocks + kMaxSlices - 1) / kMaxSlices, slices = blocks ? (blocks + per_slice - 1) / per_slice : 0;
    WeightSums* sums = scratch.array<WeightSums>(0, slices);
    ActivationBlock* activations = scratch.array<ActivationBlock>(1, thread_count());
    out.clear(anchors.rows);
    parallel_items(slices, [&](int64_t slice, int worker) {
        ActivationBlock& block = activations[worker];
        __builtin_memset(&block, 0, sizeof block);
        __builtin_memset(&sums[slice], 0, sizeof sums[slice]);
        int64_t end = least(anchors.count, (slice + 1) * per_slice * kAnchorBlock);
        for (int64_t first = slice * per_slice * kAnchorBlock; first < end; first += kAnchorBlock) {
            int vectors = 0;
            for (int64_t i = first; i < least(end, first + kAnchorBlock); i += kLanes, ++vectors) {
                int n = static_cast<int>(least<int64_t>(kLanes, end - i));
                decode_lanes_backward(anchors, decoder, v, i, n, vectors * kLanes, out, block);
            }
            add_weight_gradient(block, vectors, sums[slice]);
        }
    });
    write_weight_gradient(sums, slices, weights);
}

}  // namespace sd::SD_ISA
