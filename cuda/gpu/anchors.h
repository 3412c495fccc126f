// The Gaussian decoder as its two kernels see it: a batch of 16 anchors goes through three small MLPs (opacity,
// covariance, colour) whose weights, 28 KB, stay in shared memory. Biases are an extra column of the weights that meets
// a constant 1.
//
// One batch in shared memory: input [16, 36] = (feature 32, direction 3, 1); per head hidden [16, 33] (with its 1) and
// output [16, 70]. Pitches are odd so that the lanes of a warp meet 32 banks. The outputs of a
// covariance slot are 3 size logits, then a raw quaternion. Source: Momentum-GS section 1 (Scaffold-GS decoder).
#pragma once

#include "device.h"
#include "launchers.h"

namespace scene_distill {

constexpr int kDecodeThreads = 256;
constexpr int kAnchorsPerBatch = 16;
constexpr int kSlots = 10;     // Gaussians of an anchor
constexpr int kFeatures = 32;  // of an anchor
constexpr int kInputs = 35;    // feature and direction
constexpr int kHidden = 32;
constexpr int kInputPitch = 37;
constexpr int kHiddenPitch = 33;
constexpr int kMaxOutputs = 7 * kSlots;
constexpr int kHeads = 3;

enum Head { kOpacityHead, kCovarianceHead, kColorHead };

__host__ __device__ constexpr int head_outputs(int head) {
    return head == kOpacityHead ? kSlots : (head == kCovarianceHead ? 7 * kSlots : 3 * kSlots);
}
__host__ __device__ constexpr int output_offset(int head) {  // rows of earlier heads
    return head == kOpacityHead ? 0 : (head == kCovarianceHead ? kSlots : 8 * kSlots);
}
constexpr int kAllOutputs = 11 * kSlots;

struct DecoderShared {
    float first[kHeads][kHidden][kInputPitch];  // [w1 | b1]
    float second[kAllOutputs][kHiddenPitch];    // [w2 | b2], heads one after another
    float input[kAnchorsPerBatch][kInputPitch];
    float hidden[kAnchorsPerBatch][kHiddenPitch];
    float output[kAnchorsPerBatch][kMaxOutputs + 1];
};

__device__ __forceinline__ void load_decoder(DecoderShared& s, const SdAnchors& in) {
    for (int head = 0; head < kHeads; head++) {
        const float *w1 = in.weights[4 * head], *b1 = in.weights[4 * head + 1];
        const float *w2 = in.weights[4 * head + 2], *b2 = in.weights[4 * head + 3];
        for (int e = threadIdx.x; e < kHidden * (kInputs + 1); e += kDecodeThreads) {
            const int row = e / (kInputs + 1), column = e % (kInputs + 1);
            s.first[head][row][column] = column < kInputs ? w1[row * kInputs + column] : b1[row];
        }
        for (int e = threadIdx.x; e < head_outputs(head) * (kHidden + 1); e += kDecodeThreads) {
            const int row = e / (kHidden + 1), column = e % (kHidden + 1);
            s.second[output_offset(head) + row][column] = column < kHidden ? w2[row * kHidden + column] : b2[row];
        }
    }
}

struct Direction {
    float x, y, z, distance;
};

__device__ __forceinline__ Direction view_direction(const SdAnchors& in, long long anchor) {
    const float x = in.positions[3 * anchor] - in.camera_center[0],
                y = in.positions[3 * anchor + 1] - in.camera_center[1],
                z = in.positions[3 * anchor + 2] - in.camera_center[2];
    const float distance = fmaxf(sqrtf(x * x + y * y + z * z), 1e-12f);
    return {x / distance, y / distance, z / distance, distance};
}

// Fills s.input for the anchors visible[first, first + count); rows beyond are zero.
__device__ __forceinline__ void load_inputs(DecoderShared& s, const SdAnchors& in, int first, int count) {
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kFeatures; e += kDecodeThreads) {
        const int a = e / kFeatures, k = e % kFeatures;
        s.input[a][k] = a < count ? in.features[in.visible[first + a] * kFeatures + k] : 0.0f;
    }
    if (threadIdx.x < kAnchorsPerBatch) {
        const int a = threadIdx.x;
        Direction d = {};
        if (a < count) d = view_direction(in, in.visible[first + a]);
        s.input[a][kFeatures] = d.x;
        s.input[a][kFeatures + 1] = d.y;
        s.input[a][kFeatures + 2] = d.z;
        s.input[a][kInputs] = 1.0f;
    }
}

// s.hidden = relu(w1 z + b1), s.output = w2 h + b2 for one head. Starts and ends with everybody at a barrier.
__device__ __forceinline__ void run_head(DecoderShared& s, int head) {
    __syncthreads();
    for (int e = threadIdx.x; e < kAnchorsPerBatch * kHidden; e += kDecodeThreads) {
        const int a = e / kHidden, unit = e % kHidden;
        float sum = 0.0f;
        for (int k = 0; k <= kInputs; k++) sum += s.first[head][unit][k] * s.input[a][k];
        s.hidden[a][unit] = fmaxf(sum, 0.0f);
    }
    if (threadIdx.x < kAnchorsPerBatch) s.hidden[threadIdx.x][kHidden] = 1.0f;
    __syncthreads();
    const int outputs = head_outputs(head);
    for (int e = threadIdx.x; e < kAnchorsPerBatch * outputs; e += kDecodeThreads) {
        const int a = e / outputs, o = e % outputs;
        float sum = 0.0f;
        for (int k = 0; k <= kHidden; k++) sum += s.second[output_offset(head) + o][k] * s.hidden[a][k];
        s.output[a][o] = sum;
    }
    __syncthreads();
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// 1 / |r| of the raw quaternion r.
__device__ __forceinline__ float inverse_length(const float* r) {
    return 1.0f / fmaxf(sqrtf(r[0] * r[0] + r[1] * r[1] + r[2] * r[2] + r[3] * r[3]), 1e-12f);
}

}  // namespace scene_distill
