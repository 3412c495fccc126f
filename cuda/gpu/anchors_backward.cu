// Gradients of anchors.cu: to the anchors that were visible, and to the decoder that all anchors share.
//
// Idea    The forward is recomputed batch by batch (16 anchors). Per head: d(output) from the activations, d(hidden)
//         and d(input) by the transposed weights, and d(weights) as 16 outer products: every thread owns the same few
//         weights through all batches of its block and keeps their sums in registers. One row of partial sums a block,
//         added up in a fixed order.
// Unit    a block of 256 threads, a fixed number of blocks: the result does not depend on the device.
// Bytes   an anchor: 292 + 560 read, 292 written; 28 KB of partial sums a block. Bound: arithmetic, 3 x the forward.
#include "anchors.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kMaxBlocks = 264;  // two a multiprocessor on a large device
constexpr int kFirstWeights = kHidden * (kInputs + 1);
constexpr int kFirstOwned = ceil_div(kFirstWeights, kDecodeThreads);

constexpr int kDecoderSize = kHeads * kFirstWeights + kAllOutputs * (kHidden + 1);

constexpr __host__ __device__ int second_weights(int head) { return head_outputs(head) * (kHidden + 1); }
constexpr __host__ __device__ int second_owned(int head) { return ceil_div(second_weights(head), kDecodeThreads); }

// Sums of the weights this thread owns: entries threadIdx.x, + 256, + 512, ... of every [w | b].
struct OwnedWeights {
    float first[kHeads][kFirstOwned];
    float opacity[second_owned(kOpacityHead)], covariance[second_owned(kCovarianceHead)],
        color[second_owned(kColorHead)];
};

struct BackwardShared {
    DecoderShared decoder;
    float grad_input[kAnchorsPerBatch][kInputs];
    float slot_share[kAnchorsPerBatch * kSlots][6];  // what slots give to fields of their anchor; see slot_backward
    float grad_log_scales[kAnchorsPerBatch][6];
    float grad_positions[kAnchorsPerBatch][3];
};

// d(activated) -> d(raw) for one slot of one head, in place of the raw outputs. What the anchor's other fields get from
// this slot goes to share[6]: from the opacity head d(log_scales[0:3]) and d(position), from the covariance head
// d(log_scales[3:6]).
__device__ __forceinline__ void slot_backward(const SdAnchors& in, const SdDecodedGradients& g,
                                              const SdAnchorGradients& out, int head, float* raw, long long anchor,
                                              int slot, size_t at, float* share) {
    if (head == kOpacityHead) {
        const float alpha = tanhf(raw[slot]);
        raw[slot] = value_or_zero(g.alphas, at) * (1.0f - alpha * alpha);
        for (int k = 0; k < 3; k++) {
            const size_t offset = (anchor * kSlots + slot) * 3 + k;
            const float grad = value_or_zero(g.means, 3 * at + k), reach = expf(in.log_scales[6 * anchor + k]);
            out.offsets[offset] = grad * reach;
            share[k] = grad * in.offsets[offset] * reach;
            share[3 + k] = grad;
        }
    } else if (head == kCovarianceHead) {
        float *u = raw + 7 * slot, *r = u + 3;
        for (int k = 0; k < 3; k++) {
            const float fraction = sigmoid(u[k]), size = expf(in.log_scales[6 * anchor + 3 + k]) * fraction;
            share[k] = value_or_zero(g.scales, 3 * at + k) * size;
            u[k] = share[k] * (1.0f - fraction);
        }
        const float inverse = inverse_length(r);
        float along = 0.0f;
        for (int k = 0; k < 4; k++) along += value_or_zero(g.quats, 4 * at + k) * r[k] * inverse;
        for (int k = 0; k < 4; k++) r[k] = inverse * (value_or_zero(g.quats, 4 * at + k) - along * r[k] * inverse);
    } else {
        for (int k = 0; k < 3; k++) {
            const float color = sigmoid(raw[3 * slot + k]);
            raw[3 * slot + k] = value_or_zero(g.colors, 3 * at + k) * color * (1.0f - color);
        }
    }
}

// Turns s.output into d(output), slot by slot, then sums what bypasses the MLPs over the slots of each anchor.
__device__ __forceinline__ void outputs_backward(BackwardShared& s, const SdAnchors& in,
                                                 const SdDecodedGradients& grads, const SdAnchorGradients& out,
                                                 int head, int first, int count) {
    const int per_slot = head_outputs(head) / kSlots;
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kSlots; e += kDecodeThreads) {
        const int a = e / kSlots, slot = e % kSlots;
        if (a < count) {
            slot_backward(in, grads, out, head, s.decoder.output[a], in.visible[first + a], slot,
                          size_t(first) * kSlots + e, s.slot_share[e]);
        } else {
            for (int k = 0; k < per_slot; k++) s.decoder.output[a][slot * per_slot + k] = 0.0f;
        }
    }
    __syncthreads();
    if (head == kColorHead) return;
    for (int e = threadIdx.x; e < count * 6; e += kDecodeThreads) {
        const int a = e / 6, k = e % 6;
        if (head == kCovarianceHead && k >= 3) continue;
        float sum = 0.0f;
        for (int slot = 0; slot < kSlots; slot++) sum += s.slot_share[a * kSlots + slot][k];
        if (head == kCovarianceHead) s.grad_log_scales[a][3 + k] = sum;
        else if (k < 3) s.grad_log_scales[a][k] = sum;
        else s.grad_positions[a][k - 3] = sum;
    }
}

// d(weights)[row, column] += sum over anchors of grad[a][row] * value[a][column], for the entries this thread owns.
template <int Owned, class Grad, class Value>
__device__ __forceinline__ void add_outer_products(float (&owned)[Owned], int rows, int columns, Grad grad,
                                                   Value value) {
#pragma unroll
    for (int k = 0; k < Owned; k++) {
        const int e = threadIdx.x + k * kDecodeThreads;
        if (e >= rows * columns) continue;
        const int row = e / columns, column = e % columns;
        float sum = 0.0f;
        for (int a = 0; a < kAnchorsPerBatch; a++) sum += grad(a, row) * value(a, column);
        owned[k] += sum;
    }
}

// One head after outputs_backward: d(w2 | b2), d(hidden) in place of hidden, d(w1 | b1), and its share of d(input).
template <int Owned>
__device__ __forceinline__ void head_backward(BackwardShared& s, int head, float (&first)[kFirstOwned],
                                              float (&second)[Owned]) {
    DecoderShared& d = s.decoder;
    const int outputs = head_outputs(head);
    add_outer_products(
        second, outputs, kHidden + 1, [&](int a, int row) { return d.output[a][row]; },
        [&](int a, int column) { return d.hidden[a][column]; });
    __syncthreads();
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kHidden; e += kDecodeThreads) {
        const int a = e / kHidden, unit = e % kHidden;
        float sum = 0.0f;
        for (int o = 0; o < outputs; o++) sum += d.second[output_offset(head) + o][unit] * d.output[a][o];
        d.hidden[a][unit] = d.hidden[a][unit] > 0.0f ? sum : 0.0f;
    }
    __syncthreads();
    add_outer_products(
        first, kHidden, kInputs + 1, [&](int a, int row) { return d.hidden[a][row]; },
        [&](int a, int column) { return d.input[a][column]; });
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kInputs; e += kDecodeThreads) {
        const int a = e / kInputs, k = e % kInputs;
        float sum = 0.0f;
        for (int unit = 0; unit < kHidden; unit++) sum += d.first[head][unit][k] * d.hidden[a][unit];
        s.grad_input[a][k] += sum;
    }
}

__device__ __forceinline__ void write_anchor_gradients(const BackwardShared& s, const SdAnchors& in,
                                                       const SdAnchorGradients& out, int first, int count) {
    for (int e = threadIdx.x; e < count * kFeatures; e += kDecodeThreads) {
        const int a = e / kFeatures, k = e % kFeatures;
        out.features[in.visible[first + a] * kFeatures + k] = s.grad_input[a][k];
    }
    const int a = threadIdx.x;
    if (a >= count) return;
    const long long anchor = in.visible[first + a];
    for (int k = 0; k < 6; k++) out.log_scales[6 * anchor + k] = s.grad_log_scales[a][k];
    // d = (p - c) / |p - c|: dL/dp = (g - d (d . g)) / |p - c|.
    const Direction d = view_direction(in, anchor);
    const float* g = s.grad_input[a] + kFeatures;
    const float along = g[0] * d.x + g[1] * d.y + g[2] * d.z, direction[3] = {d.x, d.y, d.z};
    for (int k = 0; k < 3; k++) {
        out.positions[3 * anchor + k] = s.grad_positions[a][k] + (g[k] - along * direction[k]) / d.distance;
    }
}

// Writes owned sums where SdAnchors::weights has them: w1 [32, 35], b1 [32], w2 [out, 32], b2 [out] of each head.
template <int Owned>
__device__ __forceinline__ void write_owned(const float (&owned)[Owned], float* weights, float* biases, int rows,
                                            int columns) {
#pragma unroll
    for (int k = 0; k < Owned; k++) {
        const int e = threadIdx.x + k * kDecodeThreads;
        if (e >= rows * (columns + 1)) continue;
        const int row = e / (columns + 1), column = e % (columns + 1);
        if (column < columns) weights[row * columns + column] = owned[k];
        else biases[row] = owned[k];
    }
}

template <int Owned>
__device__ __forceinline__ float* write_head(const float (&first)[kFirstOwned], const float (&second)[Owned], float* at,
                                             int head) {
    const int outputs = head_outputs(head);
    float *b1 = at + kHidden * kInputs, *w2 = b1 + kHidden, *b2 = w2 + outputs * kHidden;
    write_owned(first, at, b1, kHidden, kInputs);
    write_owned(second, w2, b2, outputs, kHidden);
    return b2 + outputs;
}

__device__ __forceinline__ void clear_input_gradients(BackwardShared& s) {
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kInputs; e += kDecodeThreads)
        s.grad_input[e / kInputs][e % kInputs] = 0.0f;
}

__global__ void __launch_bounds__(kDecodeThreads)
    decode_backward_kernel(SdAnchors in, SdDecodedGradients grads, SdAnchorGradients out) {
    SD_SHARED(BackwardShared, shared);
    OwnedWeights owned = {};
    load_decoder(shared.decoder, in);
    const int stride = gridDim.x * kAnchorsPerBatch;
    for (int first = blockIdx.x * kAnchorsPerBatch; first < in.count; first += stride) {
        const int count = min(kAnchorsPerBatch, in.count - first);
        __syncthreads();
        clear_input_gradients(shared);
        load_inputs(shared.decoder, in, first, count);
#pragma unroll
        for (int head = 0; head < kHeads; head++) {
            run_head(shared.decoder, head);
            outputs_backward(shared, in, grads, out, head, first, count);
            if (head == kOpacityHead) head_backward(shared, head, owned.first[head], owned.opacity);
            if (head == kCovarianceHead) head_backward(shared, head, owned.first[head], owned.covariance);
            if (head == kColorHead) head_backward(shared, head, owned.first[head], owned.color);
        }
        __syncthreads();
        write_anchor_gradients(shared, in, out, first, count);
    }
    float* at = out.partials + size_t(blockIdx.x) * kDecoderSize;
    at = write_head(owned.first[kOpacityHead], owned.opacity, at, kOpacityHead);
    at = write_head(owned.first[kCovarianceHead], owned.covariance, at, kCovarianceHead);
    write_head(owned.first[kColorHead], owned.color, at, kColorHead);
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_decode_blocks(int count) {
    const int batches = ceil_div(count, kAnchorsPerBatch);
    return batches < kMaxBlocks ? batches : kMaxBlocks;
}

extern "C" int sd_cuda_decoder_size() { return kDecoderSize; }

extern "C" int sd_cuda_decode_anchors_backward(const SdAnchors* anchors, const SdDecodedGradients* grads,
                                               const SdAnchorGradients* out, void* stream) {
    if (anchors->count == 0) return fill_bytes(out->weights, 0, kDecoderSize * sizeof(float), stream);
    const int blocks = sd_cuda_decode_blocks(anchors->count);
    SD_LAUNCH(decode_backward_kernel, dim3(blocks), dim3(kDecodeThreads), 0, stream, *anchors, *grads, *out);
    if (const int error = last_error()) return error;
    return sum_columns(out->partials, blocks, kDecoderSize, out->weights, stream);
}
