// Absolute gradients of more channels than one pass of raster_backward.cu holds.
//
//   a_j = sum_p |dL_p / d mean_j|: absolute values do not add up over slices of channels, so every (splat, pixel)
//   needs its whole f_j . v_p at once, v = dL/dimage. rest = image . v + alpha dL/dalpha to begin with (the background
//   is in the image), rest -= w_j (f_j . v + dL/dalpha),
//   dL/dpower_j = -alpha_j (T_j (f_j . v + dL/dalpha) - rest / (1 - alpha_j)).
//
// Unit    a block a tile, a thread a pixel, a warp 8 x 4 pixels; two warp sums and two atomics a (splat, warp).
// Bytes   an evaluation reads the D features of its splat (one address for the warp) and the D gradients of its pixel
//         (4 D apart between lanes): from L1 and L2. Bound: L1, 2 D reads for 2 D flops.
// Order   atomics make the last bits depend on the schedule.
// Source  AbsGS (Ye 2024).
#include "launchers.h"
#include "primitives.h"
#include "tile_walk.h"

namespace scene_distill {
namespace {

__device__ __forceinline__ float dot(const float* __restrict__ a, const float* __restrict__ b, int count, float sum) {
    for (int c = 0; c < count; c++) sum = fmaf(a[c], b[c], sum);
    return sum;
}

__global__ void __launch_bounds__(kTilePixels)
    absolute_gradients_kernel(SdRasterInputs in, SdPictures pictures, float* __restrict__ absolute) {
    SD_SHARED(Batch<0>, batch);
    TilePixel pixel = tile_pixel(in);
    const size_t p = pixel.inside ? size_t(pixel.row) * in.width + pixel.column : 0;
    const float* grad = pictures.grad_image + p * in.channels;
    const float grad_coverage = value_or_zero(pictures.grad_alpha, p);
    float rest = dot(pictures.image + p * in.channels, grad, in.channels, pictures.alpha[p] * grad_coverage);
    float pull_x = 0.0f, pull_y = 0.0f;
    bool drawn = false;
    walk_tile<0>(
        in, {0, 0}, batch, pixel, Nothing(),
        [&](const Contact& contact) {
            const float* feature = in.features + size_t(in.pair_gaussian[contact.pair]) * in.channels;
            const float blended = dot(feature, grad, in.channels, grad_coverage);
            rest = fmaf(-contact.weight, blended, rest);
            if (contact.alpha >= in.limits.alpha_max) return;  // a clamped alpha passes no gradient
            const Splat& splat = batch.splat[contact.slot];
            const float s = contact.weight * blended - contact.alpha / (1.0f - contact.alpha) * rest;
            pull_x = fabsf(s * (splat.a * contact.dx + splat.b * contact.dy));
            pull_y = fabsf(s * (splat.b * contact.dx + splat.c * contact.dy));
            drawn = true;
        },
        [&](int pair) {
            if (!__any_sync(kFullWarp, drawn)) return;
            const float x = warp_sum(pull_x), y = warp_sum(pull_y);
            if (threadIdx.x % kWarp == 0) {
                const size_t gaussian = size_t(in.pair_gaussian[pair]);
                atomicAdd(&absolute[2 * gaussian], x);
                atomicAdd(&absolute[2 * gaussian + 1], y);
            }
            pull_x = pull_y = 0.0f;
            drawn = false;
        });
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_raster_absolute(const SdRasterInputs* in, const SdPictures* pictures, float* absolute,
                                       void* stream) {
    const int tiles = ceil_div(in->width, kTile) * ceil_div(in->height, kTile);
    SD_LAUNCH(absolute_gradients_kernel, dim3(tiles), dim3(kTilePixels), 0, stream, *in, *pictures, absolute);
    return last_error();
}
