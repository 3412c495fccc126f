// L1 and SSIM of two images, and their gradient.
//
// Idea    One block takes a 16 x 16 patch of one channel with its halo of 5 into shared memory and blurs x, y, x^2,
//         y^2, xy with the separable 11-tap Gaussian. When a gradient is wanted the same pass writes dSSIM/d(mu_x,
//         E[x^2], E[xy]) per pixel while the local means are at hand; a second kernel blurs these maps (the window is
//         symmetric, so the adjoint of the blur is the blur) and applies dE[x^2]/dx = 2 x, dE[xy]/dx = y. The backward
//         is then one multiply-add a value.
// Unit    one thread a pixel and channel.
// Bytes   2 (26/16)^2 * 4 read a value; three maps written and read for the gradient. Bound: shared memory bandwidth.
// Edges   zero padding: outside the image both images are 0, as in the formula with conv2d(padding=5).
// Source  Wang 2004; the separable fused form after fused-ssim (MIT).
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kRadius = 5;
constexpr int kTaps = 2 * kRadius + 1;
constexpr int kPatch = kTile + 2 * kRadius;
constexpr int kChannels = 3;
constexpr float kC1 = 0.01f * 0.01f;
constexpr float kC2 = 0.03f * 0.03f;

// exp(-(i - 5)^2 / (2 * 1.5^2)), normalised to sum 1.
__device__ constexpr float kWindow[kTaps] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f,
                                             0.21300553f, 0.26601172f, 0.21300553f, 0.10936069f,
                                             0.03600077f, 0.00759876f, 0.00102838f};

struct Cell {
    int column, row, channel;
    bool inside;
    size_t index;  // into [H, W, 3]
};

__device__ __forceinline__ Cell cell(int width, int height) {
    Cell c;
    c.column = blockIdx.x * kTile + threadIdx.x;
    c.row = blockIdx.y * kTile + threadIdx.y;
    c.channel = blockIdx.z;
    c.inside = c.column < width && c.row < height;
    c.index = (size_t(c.row) * width + c.column) * kChannels + c.channel;
    return c;
}

// Loads source[(row, column)] of the patch around the block, 0 outside the image, for `maps` maps at once.
template <int Maps, class Source>
__device__ __forceinline__ void load_patch(float (*patch)[kPatch][kPatch], int width, int height, Source source) {
    const int thread = threadIdx.y * kTile + threadIdx.x;
    for (int e = thread; e < kPatch * kPatch; e += kTilePixels) {
        const int i = e / kPatch, j = e % kPatch;
        const int row = int(blockIdx.y) * kTile + i - kRadius, column = int(blockIdx.x) * kTile + j - kRadius;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        for (int m = 0; m < Maps; m++) patch[m][i][j] = inside ? source(m, row, column) : 0.0f;
    }
    __syncthreads();
}

struct ForwardShared {
    float patch[2][kPatch][kPatch];  // x, y
    float rows[5][kPatch][kTile];    // blurred along rows: x, y, x^2, y^2, xy
    BlockSums sums;
};

struct Moments {
    float x, y, xx, yy, xy;  // local means; the last three of products
};

__device__ __forceinline__ Moments local_moments(ForwardShared& shared, const SdImages& images) {
    load_patch<2>(shared.patch, images.width, images.height, [&](int m, int row, int column) {
        return (m ? images.target : images.image)[(size_t(row) * images.width + column) * kChannels + blockIdx.z];
    });
    for (int i = threadIdx.y; i < kPatch; i += kTile) {
        Moments sum = {};
        for (int tap = 0; tap < kTaps; tap++) {
            const float x = shared.patch[0][i][threadIdx.x + tap], y = shared.patch[1][i][threadIdx.x + tap],
                        w = kWindow[tap];
            sum.x += w * x;
            sum.y += w * y;
            sum.xx += w * x * x;
            sum.yy += w * y * y;
            sum.xy += w * x * y;
        }
        const float values[5] = {sum.x, sum.y, sum.xx, sum.yy, sum.xy};
        for (int m = 0; m < 5; m++) shared.rows[m][i][threadIdx.x] = values[m];
    }
    __syncthreads();
    float means[5] = {};
    for (int m = 0; m < 5; m++) {
        for (int tap = 0; tap < kTaps; tap++) means[m] += kWindow[tap] * shared.rows[m][threadIdx.y + tap][threadIdx.x];
    }
    return {means[0], means[1], means[2], means[3], means[4]};
}

struct Similarity {
    float luminance, contrast, luminance_below, contrast_below;  // ssim = (luminance contrast) / (.._below .._below)
    __device__ __forceinline__ float value() const { return luminance * contrast / (luminance_below * contrast_below); }
};

__device__ __forceinline__ Similarity similarity(const Moments& m) {
    return {2 * m.x * m.y + kC1, 2 * (m.xy - m.x * m.y) + kC2, m.x * m.x + m.y * m.y + kC1,
            m.xx - m.x * m.x + m.yy - m.y * m.y + kC2};
}

// maps[m][channel][row][column]: dSSIM / d(mu_x, E[x^2], E[xy]) of each pixel's own window.
__device__ __forceinline__ void write_derivatives(const Moments& m, const Similarity& s, const SdImages& images,
                                                  const Cell& c, float* maps) {
    const float value = s.value(), below = s.luminance_below * s.contrast_below;
    const float d_xx = -value / s.contrast_below, d_xy = 2 * s.luminance / below;
    const float d_mean =
        2 * m.y * (s.contrast - s.luminance) / below + 2 * m.x * value * (1 / s.contrast_below - 1 / s.luminance_below);
    const size_t plane = size_t(images.width) * images.height, p = size_t(c.row) * images.width + c.column;
    const float values[3] = {d_mean, d_xx, d_xy};
    for (int k = 0; k < 3; k++) maps[(k * kChannels + c.channel) * plane + p] = values[k];
}

__global__ void __launch_bounds__(kTilePixels)
    l1_ssim_kernel(SdImages images, float* __restrict__ partials, float* __restrict__ maps) {
    SD_SHARED(ForwardShared, shared);
    const Cell c = cell(images.width, images.height);
    const Moments moments = local_moments(shared, images);
    const Similarity s = similarity(moments);
    const int thread = threadIdx.y * kTile + threadIdx.x;
    const float scale = 1.0f / (float(kChannels) * images.width * images.height);
    const float difference = c.inside ? fabsf(images.image[c.index] - images.target[c.index]) : 0.0f;
    const float l1 = block_sum(difference * scale, shared.sums, thread, kTilePixels);
    const float ssim = block_sum(c.inside ? s.value() * scale : 0.0f, shared.sums, thread, kTilePixels);
    if (thread == 0) {
        const size_t block = (size_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        partials[2 * block] = l1;
        partials[2 * block + 1] = ssim;
    }
    if (maps && c.inside) write_derivatives(moments, s, images, c, maps);
}

struct GradientShared {
    float patch[3][kPatch][kPatch];
    float rows[3][kPatch][kTile];
};

__global__ void __launch_bounds__(kTilePixels)
    ssim_gradient_kernel(SdImages images, const float* __restrict__ maps, float* __restrict__ ssim_gradient) {
    SD_SHARED(GradientShared, shared);
    const size_t plane = size_t(images.width) * images.height;
    load_patch<3>(shared.patch, images.width, images.height, [&](int m, int row, int column) {
        return maps[(m * kChannels + blockIdx.z) * plane + size_t(row) * images.width + column];
    });
    for (int i = threadIdx.y; i < kPatch; i += kTile) {
        for (int m = 0; m < 3; m++) {
            float sum = 0.0f;
            for (int tap = 0; tap < kTaps; tap++) sum += kWindow[tap] * shared.patch[m][i][threadIdx.x + tap];
            shared.rows[m][i][threadIdx.x] = sum;
        }
    }
    __syncthreads();
    const Cell c = cell(images.width, images.height);
    if (!c.inside) return;
    float blurred[3] = {};
    for (int m = 0; m < 3; m++) {
        for (int tap = 0; tap < kTaps; tap++)
            blurred[m] += kWindow[tap] * shared.rows[m][threadIdx.y + tap][threadIdx.x];
    }
    const float x = images.image[c.index], y = images.target[c.index];
    const float scale = 1.0f / (float(kChannels) * images.width * images.height);
    ssim_gradient[c.index] = scale * (blurred[0] + 2 * x * blurred[1] + y * blurred[2]);
}

constexpr int kElementThreads = 256;

__global__ void __launch_bounds__(kElementThreads)
    l1_ssim_backward_kernel(SdImages images, const float* __restrict__ ssim_gradient, const float* grad_l1,
                            const float* grad_ssim, float* __restrict__ grad_image) {
    const int i = blockIdx.x * kElementThreads + threadIdx.x, count = kChannels * images.width * images.height;
    if (i >= count) return;
    const float x = images.image[i], y = images.target[i];
    const float sign = x > y ? 1.0f : (x < y ? -1.0f : 0.0f);
    grad_image[i] = *grad_l1 * sign / float(count) + *grad_ssim * ssim_gradient[i];
}

dim3 grid_of(int width, int height) { return dim3(ceil_div(width, kTile), ceil_div(height, kTile), kChannels); }

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_similarity_blocks(int width, int height) {
    return ceil_div(width, kTile) * ceil_div(height, kTile) * kChannels;
}

extern "C" int sd_cuda_l1_ssim(const SdImages* images, const SdSimilarity* out, void* stream) {
    const dim3 grid = grid_of(images->width, images->height), block(kTile, kTile);
    SD_LAUNCH(l1_ssim_kernel, grid, block, 0, stream, *images, out->partials, out->maps);
    if (const int error = last_error()) return error;
    if (out->ssim_gradient) {
        SD_LAUNCH(ssim_gradient_kernel, grid, block, 0, stream, *images, out->maps, out->ssim_gradient);
        if (const int error = last_error()) return error;
    }
    return sum_columns(out->partials, sd_cuda_similarity_blocks(images->width, images->height), 2, out->means, stream);
}

extern "C" int sd_cuda_l1_ssim_backward(const SdImages* images, const float* ssim_gradient, const float* grad_l1,
                                        const float* grad_ssim, float* grad_image, void* stream) {
    const int blocks = ceil_div(kChannels * images->width * images->height, kElementThreads);
    SD_LAUNCH(l1_ssim_backward_kernel, dim3(blocks), dim3(kElementThreads), 0, stream, *images, ssim_gradient, grad_l1,
              grad_ssim, grad_image);
    return last_error();
}
