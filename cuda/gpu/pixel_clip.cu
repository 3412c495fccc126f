// Pixel-wise gradient clipping: each pixel's gradient is scaled down until no channel exceeds a bound.
//
//   factor_p = min_c min(1, bound / |g_pc|),  g'_pc = factor_p g_pc: the direction stays, spikes of a prior do not pass
//
// Unit    one thread a pixel.
// Bytes   4 D read and 4 D written a pixel (D = 3: a tenth of what the raster backward moves). Bound: memory.
// Source  PGC (ICLR 2024), as Dreamer XL uses it between the losses and the rasterizer.
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    clip_pixels_kernel(const float* __restrict__ grad, int pixels, int channels, float bound, float* __restrict__ out) {
    const int p = blockIdx.x * kThreads + threadIdx.x;
    if (p >= pixels) return;
    const size_t first = size_t(p) * channels;
    float largest = 0.0f;
    for (int c = 0; c < channels; c++) largest = fmaxf(largest, fabsf(grad[first + c]));
    const float factor = largest > bound ? bound / largest : 1.0f;
    for (int c = 0; c < channels; c++) out[first + c] = factor * grad[first + c];
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_clip_pixels(const float* grad, int pixels, int channels, float bound, float* out, void* stream) {
    SD_LAUNCH(clip_pixels_kernel, dim3(ceil_div(pixels, kThreads)), dim3(kThreads), 0, stream, grad, pixels, channels,
              bound, out);
    return last_error();
}
