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

// One anchor per lane: inputs, hidden layers and raw outputs.
struct DecoderLanes {
    Floats z[kInputs], hidden[kHeads][kHidden], raw[kOutputs];
    Floats position[3], inverse_distance, log_scale[6], span[3], base[3];  // span = exp(s[0:3]), base = exp(s[3:6])
    Rows three, thirty;                                                    // rows of positions and of offsets

    DecoderLanes(const sd_anchors& a, int64_t first, int n)
        : three(a.visible + first, n, 3), thirty(a.visible + first, n, 3 * kSlots) {
        Rows features(a.visible + first, n, kFeatures), six(a.visible + first, n, 6);
        for (int k = 0; k < kFeatures; ++k) z[k] = features.load(a.features + k);
        Floats square = 0.0f, offset[3];
        for (int k = 0; k < 3; ++k) {
            position[k] = three.load(a.positions + k);
            offset[k] = position[k] - a.camera_center[k];
            square = fma(offset[k], offset[k], square);
        }
        inverse_distance = 1.0f / max(sqrt(square), 1e-12f);
        for (int k = 0; k < 3; ++k) z[kFeatures + k] = offset[k] * inverse_distance;
        for (int k = 0; k < 6; ++k) log_scale[k] = six.load(a.log_scales + k);
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
    void pull(const Floats (&v)[4], Floats* out) const {  // gradient of the raw quaternion
        Floats along = v[0] * q[0] + v[1] * q[1] + v[2] * q[2] + v[3] * q[3];
        for (int k = 0; k < 4; ++k) out[k] = fnma(along, q[k], v[k]) * inverse_norm;
    }
};

inline void write_slot(const DecoderLanes& l, const sd_anchors& a, int slot, int64_t first, int n, const sd_slots& out) {
    int64_t at = first * kSlots + slot;
    const Floats* shape = l.raw + kShapeAt + 7 * slot;
    UnitQuaternion unit(shape + 3);
    for (int k = 0; k < 3; ++k) {
        Floats offset = l.thirty.load(a.offsets + 3 * slot + k);
        store_strided(out.means + 3 * at + k, 3 * kSlots, fma(offset, l.span[k], l.position[k]), n);
        store_strided(out.scales + 3 * at + k, 3 * kSlots, l.base[k] * sigmoid(shape[k]), n);
        store_strided(out.colors + 3 * at + k, 3 * kSlots, sigmoid(l.raw[kColorAt + 3 * slot + k]), n);
    }
    for (int k = 0; k < 4; ++k) store_strided(out.quats + 4 * at + k, 4 * kSlots, unit.q[k], n);
    store_strided(out.alphas + at, kSlots, hyperbolic_tangent(l.raw[kAlphaAt + slot]), n);
}

inline void decode_forward(const sd_anchors& anchors, const sd_decoder& decoder, const sd_slots& out) {
    parallel_chunks(anchors.count, kAnchorBlock, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            DecoderLanes lanes(anchors, i, n);
            lanes.run(decoder);
            for (int slot = 0; slot < kSlots; ++slot) write_slot(lanes, anchors, slot, i, n, out);
        }
    });
}

struct AnchorGradient {
    float *positions, *features, *offsets, *log_scales;  // rows of visible anchors are written
};

// Activations and their gradients of a block of anchors, for the weight gradients: [value][anchor]. Row counts are padded to 4.
struct ActivationBlock {
    alignas(64) float inputs[36][kAnchorBlock];  // z, then a row of ones for the bias
    alignas(64) float hidden[kHeads][kHidden][kAnchorBlock];
    alignas(64) float v_hidden[kHeads][kHidden][kAnchorBlock];
    alignas(64) float v_raw[kHeads][72][kAnchorBlock];
};

// Gradients of the raw outputs of one slot, and of offsets, spans and bases, from those of the decoded slot.
struct SlotPull {
    Floats v_mean[3] = {0.0f, 0.0f, 0.0f}, v_log[6] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};

    void add(const DecoderLanes& l, const sd_anchors& a, int slot, int64_t first, int n, const sd_slots& v, float* v_offsets,
             Floats* v_raw) {
        int64_t at = first * kSlots + slot;
        auto from = [&](const float* p, int width, int k) {
            return p ? load_strided(p + width * at + k, width * kSlots, n) : Floats(0.0f);
        };
        const Floats* shape = l.raw + kShapeAt + 7 * slot;
        for (int k = 0; k < 3; ++k) {
            Floats mean = from(v.means, 3, k), offset = l.thirty.load(a.offsets + 3 * slot + k), moved = mean * l.span[k];
            l.thirty.store(v_offsets + 3 * slot + k, moved);
            v_mean[k] = v_mean[k] + mean, v_log[k] = fma(moved, offset, v_log[k]);
            Floats gate = sigmoid(shape[k]), size = from(v.scales, 3, k) * l.base[k] * gate;
            v_log[3 + k] = v_log[3 + k] + size;
            v_raw[kShapeAt + 7 * slot + k] = size * (1.0f - gate);
            Floats color = sigmoid(l.raw[kColorAt + 3 * slot + k]);
            v_raw[kColorAt + 3 * slot + k] = from(v.colors, 3, k) * color * (1.0f - color);
        }
        Floats quat[4];
        for (int k = 0; k < 4; ++k) quat[k] = from(v.quats, 4, k);
        UnitQuaternion(shape + 3).pull(quat, v_raw + kShapeAt + 7 * slot + 3);
        Floats alpha = hyperbolic_tangent(l.raw[kAlphaAt + slot]);
        v_raw[kAlphaAt + slot] = from(v.alphas, 1, 0) * fnma(alpha, alpha, 1.0f);
    }
};

// Pulls the gradients of kLanes anchors back to the anchors and leaves the activations in the block at `lane`.
inline void decode_lanes_backward(const sd_anchors& a, const sd_decoder& d, const sd_slots& v, int64_t first, int n, int lane,
                                  const AnchorGradient& out, ActivationBlock& block) {
    DecoderLanes l(a, first, n);
    l.run(d);
    SlotPull pull;
    Floats v_raw[kOutputs], v_z[kInputs];
    for (int slot = 0; slot < kSlots; ++slot) pull.add(l, a, slot, first, n, v, out.offsets, v_raw);
    for (auto& value : v_z) value = 0.0f;
    for (int head = 0, at = 0; head < kHeads; at += kHeadOutputs[head++]) {
        Floats v_hidden[kHidden], v_part[kInputs];
        affine(d.w2[head], 1, kHidden, kHidden, kHeadOutputs[head], v_raw + at, nullptr, v_hidden);
        for (int k = 0; k < kHidden; ++k) v_hidden[k] = zero_unless(l.hidden[head][k] > 0.0f, v_hidden[k]);
        affine(d.w1[head], 1, kInputs, kInputs, kHidden, v_hidden, nullptr, v_part);
        for (int k = 0; k < kInputs; ++k) v_z[k] = v_z[k] + v_part[k];
        for (int k = 0; k < kHidden; ++k) {
            store(block.hidden[head][k] + lane, l.hidden[head][k]);
            store(block.v_hidden[head][k] + lane, v_hidden[k]);
        }
        for (int k = 0; k < kHeadOutputs[head]; ++k) store(block.v_raw[head][k] + lane, v_raw[at + k]);
    }
    for (int k = 0; k < kInputs; ++k) store(block.inputs[k] + lane, l.z[k]);
    store(block.inputs[kInputs] + lane, 1.0f);

    Rows features(a.visible + first, n, kFeatures), six(a.visible + first, n, 6);
    for (int k = 0; k < kFeatures; ++k) features.store(out.features + k, v_z[k]);
    for (int k = 0; k < 6; ++k) six.store(out.log_scales + k, pull.v_log[k]);
    const Floats *direction = l.z + kFeatures, *v_direction = v_z + kFeatures;
    Floats along = v_direction[0] * direction[0] + v_direction[1] * direction[1] + v_direction[2] * direction[2];
    for (int k = 0; k < 3; ++k) {
        Floats turned = fnma(along, direction[k], v_direction[k]) * l.inverse_distance;
        l.three.store(out.positions + k, pull.v_mean[k] + turned);
    }
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
