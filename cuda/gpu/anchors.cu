// Anchors seen by one camera to Gaussians: three small MLPs and their activations.
//
//   z = [f, d], d = (p - c) / |p - c|;  head(z) = w2 relu(w1 z + b1) + b2
//   alpha = tanh(opacity);  size = exp(s[3:6]) sigmoid(u);  quaternion = r / |r|;  colour = sigmoid(.)
//   mean = p + O exp(s[0:3])
//
// Unit    a block of 256 threads decodes batches of 16 anchors with the weights in shared memory (anchors.h).
// Bytes   an anchor: 292 read, 560 written, in contiguous runs of 160 slots; weights once a block.
// Bound   between memory and arithmetic: 6,880 fused multiply-adds an anchor from shared memory.
#include "anchors.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kMaxBlocks = 4096;  // enough to fill a device several times; more only reload weights

// Writes one slot's share of a head's activated outputs; `at` is the slot's index in the output arrays.
__device__ __forceinline__ void write_slot(const SdAnchors& in, const SdDecoded& out, int head, const float* raw,
                                           long long anchor, int slot, size_t at) {
    if (head == kOpacityHead) {
        out.alphas[at] = tanhf(raw[slot]);
        for (int k = 0; k < 3; k++) {
            const float reach = expf(in.log_scales[6 * anchor + k]);
            out.means[3 * at + k] = in.positions[3 * anchor + k] + in.offsets[(anchor * kSlots + slot) * 3 + k] * reach;
        }
    } else if (head == kCovarianceHead) {
        const float* r = raw + 7 * slot + 3;
        const float inverse = inverse_length(r);
        for (int k = 0; k < 3; k++)
            out.scales[3 * at + k] = expf(in.log_scales[6 * anchor + 3 + k]) * sigmoid(raw[7 * slot + k]);
        for (int k = 0; k < 4; k++) out.quats[4 * at + k] = r[k] * inverse;
    } else {
        for (int k = 0; k < 3; k++) out.colors[3 * at + k] = sigmoid(raw[3 * slot + k]);
    }
}

__global__ void __launch_bounds__(kDecodeThreads) decode_kernel(SdAnchors in, SdDecoded out) {
    SD_SHARED(DecoderShared, shared);
    load_decoder(shared, in);
    const int stride = gridDim.x * kAnchorsPerBatch;
    for (int first = blockIdx.x * kAnchorsPerBatch; first < in.count; first += stride) {
        const int count = min(kAnchorsPerBatch, in.count - first);
        __syncthreads();
        load_inputs(shared, in, first, count);
        for (int head = 0; head < kHeads; head++) {
            run_head(shared, head);
            for (int e = threadIdx.x; e < count * kSlots; e += kDecodeThreads) {
                const int a = e / kSlots, slot = e % kSlots;
                write_slot(in, out, head, shared.output[a], in.visible[first + a], slot, size_t(first) * kSlots + e);
            }
        }
    }
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_decode_anchors(const SdAnchors* anchors, const SdDecoded* out, void* stream) {
    if (anchors->count == 0) return 0;
    const int batches = ceil_div(anchors->count, kAnchorsPerBatch);
    SD_LAUNCH(decode_kernel, dim3(batches < kMaxBlocks ? batches : kMaxBlocks), dim3(kDecodeThreads), 0, stream,
              *anchors, *out);
    return last_error();
}
