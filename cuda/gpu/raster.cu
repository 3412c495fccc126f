// Front-to-back alpha blending of a tile's list.
//
//   image = sum_j w_j f_j + T background,  w_j = alpha_j prod_{k<j} (1 - alpha_k),  T = prod_j (1 - alpha_j)
//
// Unit    one block of 256 threads a tile of 16 x 16 pixels, one thread a pixel, a warp 8 x 4 pixels; see tile_walk.h.
// Bytes   a pair: 24 + 4 C read once a tile into shared memory; a pixel: 4 C + 4 written.
// Bound   arithmetic: ~10 flops and one exp a (splat, pixel of a reached warp), + C fused multiply-adds when it
//         contributes.
// Source  3DGS section 6; warp-level culling after FlashGS.
#include "launchers.h"
#include "primitives.h"
#include "tile_walk.h"

namespace scene_distill {
namespace {

template <int C>
__global__ void __launch_bounds__(kTilePixels)
    raster_kernel(SdRasterInputs in, ChannelSlice slice, float* __restrict__ image, float* __restrict__ alpha) {
    SD_SHARED(Batch<C>, batch);
    TilePixel pixel = tile_pixel(in);
    float sum[C] = {};
    walk_tile<C>(
        in, slice, batch, pixel, Nothing(),
        [&](const Contact& contact) {
            for (int c = 0; c < C; c++) sum[c] += contact.weight * batch.feature[contact.slot][c];
        },
        Nothing());
    if (!pixel.inside) return;
    const size_t p = size_t(pixel.row) * in.width + pixel.column;
#pragma unroll
    for (int c = 0; c < C; c++) {
        if (c >= slice.count) break;
        image[p * in.channels + slice.first + c] = sum[c] + pixel.transmittance * in.background[slice.first + c];
    }
    if (slice.first == 0) alpha[p] = 1.0f - pixel.transmittance;
}

struct RunSlice {
    const SdRasterInputs* in;
    float *image, *alpha;
    void* stream;

    template <int C>
    int operator()(ChannelSlice slice) const {
        const int tiles = ceil_div(in->width, kTile) * ceil_div(in->height, kTile);
        SD_LAUNCH(raster_kernel<C>, dim3(tiles), dim3(kTilePixels), 0, stream, *in, slice, image, alpha);
        return last_error();
    }
};

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_raster(const SdRasterInputs* in, float* image, float* alpha, void* stream) {
    return for_each_slice(in->channels, RunSlice{in, image, alpha, stream});
}
