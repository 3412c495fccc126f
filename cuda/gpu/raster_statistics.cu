// What a picture says about its Gaussians: how much each contributed to which pixels, and the median of every pixel.
//
// Idea    The walk of raster.cu without colours. Contributions: the 32 pixels of a warp are added up first; the sums
//         of the warps meet in 64-bit integers in units of 2^-34, whose order does not matter: the same bytes every
//         time. Median: the Gaussian that takes the transmittance to at or below one half; the pixel is done there.
// Unit    a block a tile, a thread a pixel, a warp 8 x 4 pixels.
// Bytes   a pair: 24 read once a tile; contributions: 16 added atomically a (splat, warp that draws it). Bound:
//         exponentials for the median, shuffles (10 a splat and warp) for the contributions.
#include "launchers.h"
#include "primitives.h"
#include "tile_walk.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 256;
constexpr float kUnits = 17179869184.0f;  // 2^34 in a weight of one: 2^28 pixels of it still fit
using Sum = unsigned long long;

__device__ __forceinline__ float warp_max(float value) {
    for (int bit = kWarp / 2; bit > 0; bit >>= 1) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, bit));
    return value;
}

__global__ void __launch_bounds__(kTilePixels) contributions_kernel(SdRasterInputs in, SdContributions out) {
    SD_SHARED(Batch<0>, batch);
    TilePixel pixel = tile_pixel(in);
    float weight = 0.0f;
    walk_tile<0>(
        in, {0, 0}, batch, pixel, Nothing(), [&](const Contact& contact) { weight = contact.weight; },
        [&](int pair) {
            const unsigned drawn = __ballot_sync(kFullWarp, weight > 0.0f);
            if (!drawn) return;
            const float sum = warp_sum(weight), largest = warp_max(weight);
            if (threadIdx.x % kWarp == 0) {
                const int gaussian = in.pair_gaussian[pair];
                atomicAdd(reinterpret_cast<Sum*>(&out.sums[gaussian]), Sum(sum * kUnits + 0.5f));
                atomicMax(reinterpret_cast<int*>(&out.weight_max[gaussian]), __float_as_int(largest));  // positive
                atomicAdd(&out.pixels[gaussian], __popc(drawn));
            }
            weight = 0.0f;
        });
}

__global__ void __launch_bounds__(kThreads)
    weight_sums_kernel(const long long* __restrict__ sums, int count, float* __restrict__ weight_sum) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i < count) weight_sum[i] = float(sums[i]) / kUnits;
}

__global__ void __launch_bounds__(kTilePixels) median_kernel(SdRasterInputs in, int* __restrict__ median) {
    SD_SHARED(Batch<0>, batch);
    TilePixel pixel = tile_pixel(in);
    int pair = -1;
    walk_tile<0>(
        in, {0, 0}, batch, pixel, Nothing(),
        [&](const Contact& contact) {
            if (contact.behind > 0.5f) return;
            pair = contact.pair;
            pixel.done = true;
        },
        Nothing());
    if (pixel.inside) median[size_t(pixel.row) * in.width + pixel.column] = pair < 0 ? -1 : in.pair_gaussian[pair];
}

int tile_count(const SdRasterInputs& in) { return ceil_div(in.width, kTile) * ceil_div(in.height, kTile); }

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_raster_contributions(const SdRasterInputs* in, int count, const SdContributions* out,
                                            void* stream) {
    if (count == 0) return 0;
    SD_LAUNCH(contributions_kernel, dim3(tile_count(*in)), dim3(kTilePixels), 0, stream, *in, *out);
    if (const int error = last_error()) return error;
    SD_LAUNCH(weight_sums_kernel, dim3(ceil_div(count, kThreads)), dim3(kThreads), 0, stream, out->sums, count,
              out->weight_sum);
    return last_error();
}

extern "C" int sd_cuda_raster_median(const SdRasterInputs* in, int* median, void* stream) {
    SD_LAUNCH(median_kernel, dim3(tile_count(*in)), dim3(kTilePixels), 0, stream, *in, median);
    return last_error();
}
