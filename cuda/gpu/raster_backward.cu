// Gradients of raster.cu, per splat instead of per pixel.
//
// Idea    1. Replay the forward; every 32 splats (a bucket) store two numbers a pixel: the transmittance T and the
//         blended total A = sum w_k g_k, where g_k = f_k . dL/dimage + dL/dalpha. 2. One warp a bucket, one lane a
//         splat: pixels stream through the lanes like through a pipeline, T and (total - A) handed on by shuffles, so
//         each lane sums the gradient of its own splat in registers and adds it to memory once a tile: no reductions,
//         32 times fewer atomics. dL/dalpha_j = T_j g_j - rest_j / (1 - alpha_j), rest_j = sum_{k>j} w_k g_k + T_end
//         (background . dL/dimage); mean, conic and opacity follow from six moments of s = dL/dpower at the end.
// Unit    pass 1 a block a tile, pass 2 a warp a bucket, streaming only the rows its splats reach.
// Bytes   2 KiB of checkpoint written and read a bucket; nothing is kept from the forward pass. More than 32 channels
//         run in slices: the gradient is linear in the channels, so slices simply add.
// Bound   arithmetic; pass 2 does 256 + 31 steps a bucket at most.
// Order   atomics make the last bits depend on the schedule; the background gradient is summed in a fixed order.
// Source  Taming 3DGS (Mallick 2024); storing scalars instead of colours is ours. Absolute gradients: AbsGS (Ye 2024).
#include "launchers.h"
#include "primitives.h"
#include "tile_walk.h"

namespace scene_distill {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kRing = 2 * kWarp;  // pixels in flight: 32 lanes behind the head, 32 loaded ahead

// Where the buckets of a tile start. Gaps are harmless, overlaps impossible, and no prefix sum is needed:
// floor((o + n) / 32) + 1 >= floor(o / 32) + ceil(n / 32).
__device__ __forceinline__ int first_bucket(const int* tile_offsets, int tile) {
    return tile_offsets[tile] / kBucket + tile;
}

template <int C>
__global__ void __launch_bounds__(kTilePixels, C <= 16 ? 4 : 3)
    checkpoint_kernel(SdRasterInputs in, ChannelSlice slice, const float* __restrict__ grad_image,
                      const float* __restrict__ grad_alpha, SdRasterScratch scratch) {
    SD_SHARED(Batch<C>, batch);
    SD_SHARED(BlockSums, sums);
    TilePixel pixel = tile_pixel(in);
    const size_t p = size_t(pixel.row) * in.width + pixel.column;
    float grad[C];
    for (int c = 0; c < C; c++) {
        grad[c] = pixel.inside && c < slice.count ? grad_image[p * in.channels + slice.first + c] : 0.0f;
    }
    const float grad_coverage = pixel.inside && slice.first == 0 ? value_or_zero(grad_alpha, p) : 0.0f;
    float total = 0.0f;
    const int bucket_base = first_bucket(in.tile_offsets, pixel.tile);
    walk_tile<C>(
        in, slice, batch, pixel,
        [&](int bucket) {
            const size_t slot = size_t(bucket_base + bucket) * kTilePixels + pixel.in_tile;
            scratch.checkpoints[2 * slot] = pixel.done ? 0.0f : pixel.transmittance;
            scratch.checkpoints[2 * slot + 1] = total;
            if (threadIdx.x == 0) scratch.bucket_tile[bucket_base + bucket] = pixel.tile;
        },
        [&](const Contact& contact) {
            const float* feature = batch.feature[contact.slot];
            float blended = grad_coverage;
            for (int c = 0; c < C; c++) blended = fmaf(feature[c], grad[c], blended);
            total = fmaf(contact.weight, blended, total);
        },
        Nothing());
    float behind = 0.0f;
#pragma unroll
    for (int c = 0; c < C; c++) {
        if (c >= slice.count) break;
        behind += grad[c] * in.background[slice.first + c];
        const float sum = block_sum(pixel.transmittance * grad[c], sums, threadIdx.x, kTilePixels);
        if (threadIdx.x == 0) scratch.background_partials[size_t(pixel.tile) * in.channels + slice.first + c] = sum;
    }
    if (pixel.inside) scratch.totals[p] = total + pixel.transmittance * behind;
}

// What the pixels of the ring carry, by channel; the last row is dL/dalpha. Lanes read neighbouring pixels: no
// conflicts.
template <int C>
struct Ring {
    float grad[kWarpsPerBlock][C + 1][kRing];
};

struct Moments {
    float one, x, y, xx, xy, yy;   // sums of s, s dx, s dy, ...; s = dL/dpower
    float absolute_x, absolute_y;  // sums of |dL/d mean| of single pixels, where wanted
};

// A warp's place in the tile it works on.
struct Stream {
    int tile_column, tile_row;   // px of the tile's corner
    int first_row, pixel_count;  // rows [first_row, ...) of the tile, row-major
    size_t checkpoint;           // index of the bucket's first pixel
};

struct PixelState {
    float transmittance, rest;
};

// Loads 32 pixels from stream position `at` on, one a lane: gradients into the ring, state into registers.
template <int C>
__device__ __forceinline__ PixelState load_pixels(float (*ring)[kRing], const SdRasterInputs& in, ChannelSlice slice,
                                                  const float* grad_image, const float* grad_alpha,
                                                  const SdRasterScratch& scratch, const Stream& stream, int at,
                                                  int lane) {
    const int k = at + lane, in_tile = stream.first_row * kTile + k;
    const int column = stream.tile_column + in_tile % kTile, row = stream.tile_row + in_tile / kTile;
    if (k >= stream.pixel_count || column >= in.width || row >= in.height) return {0.0f, 0.0f};
    const size_t p = size_t(row) * in.width + column, slot = stream.checkpoint + in_tile;
    for (int c = 0; c < C; c++) {
        ring[c][k % kRing] = c < slice.count ? grad_image[p * in.channels + slice.first + c] : 0.0f;
    }
    ring[C][k % kRing] = slice.first == 0 ? value_or_zero(grad_alpha, p) : 0.0f;
    return {scratch.checkpoints[2 * slot], scratch.totals[p] - scratch.checkpoints[2 * slot + 1]};
}

// Rows of the tile that any lane's splat reaches.
__device__ __forceinline__ void limit_rows(const Splat& splat, bool valid, float alpha_min, Stream& stream) {
    const Reach reach = splat_reach(splat, alpha_min);
    const float top = splat.y - reach.half_y - stream.tile_row - 0.5f,
                bottom = splat.y + reach.half_y - stream.tile_row - 0.5f;
    int first = valid ? int(fminf(fmaxf(ceilf(top), 0.0f), float(kTile))) : kTile;
    int last = valid ? int(fminf(fmaxf(floorf(bottom), -1.0f), float(kTile - 1))) : -1;
    for (int bit = kWarp / 2; bit > 0; bit >>= 1) {
        first = min(first, __shfl_xor_sync(kFullWarp, first, bit));
        last = max(last, __shfl_xor_sync(kFullWarp, last, bit));
    }
    stream.first_row = first;
    stream.pixel_count = max(0, last - first + 1) * kTile;
}

// One splat meets one pixel: moves the pixel's state past the splat and adds to the splat's gradient.
template <int C>
__device__ __forceinline__ void meet(const Splat& splat, const float (&feature)[C], const float (*ring)[kRing],
                                     int slot, float dx, float dy, const SdLimits& limits, bool absolute,
                                     PixelState& state, Moments& moments, float (&grad_feature)[C]) {
    const float alpha = splat_alpha(splat, dx, dy, limits.alpha_max);
    if (alpha < limits.alpha_min) return;
    const float next = next_transmittance(state.transmittance, alpha);
    if (next <= limits.transmittance_min) {
        state.transmittance = 0.0f;  // finished
        return;
    }
    const float weight = alpha * state.transmittance;
    float blended = ring[C][slot];
    for (int c = 0; c < C; c++) {
        const float grad = ring[c][slot];
        blended = fmaf(feature[c], grad, blended);
        grad_feature[c] = fmaf(weight, grad, grad_feature[c]);
    }
    state.rest = fmaf(-weight, blended, state.rest);
    if (alpha < limits.alpha_max) {
        const float s = -alpha * (state.transmittance * blended - state.rest / (1.0f - alpha));
        moments.one += s;
        moments.x += s * dx;
        moments.y += s * dy;
        moments.xx += s * dx * dx;
        moments.xy += s * dx * dy;
        moments.yy += s * dy * dy;
        if (absolute) {
            moments.absolute_x += fabsf(s * (splat.a * dx + splat.b * dy));
            moments.absolute_y += fabsf(s * (splat.b * dx + splat.c * dy));
        }
    }
    state.transmittance = next;
}

template <int C>
__device__ __forceinline__ void add_gradients(const SdRasterGradients& out, const Splat& s, const Moments& m,
                                              int gaussian, int channels, ChannelSlice slice,
                                              const float (&grad_feature)[C]) {
    atomicAdd(&out.means2d[2 * gaussian], s.a * m.x + s.b * m.y);
    atomicAdd(&out.means2d[2 * gaussian + 1], s.b * m.x + s.c * m.y);
    atomicAdd(&out.conics[3 * gaussian], 0.5f * m.xx);
    atomicAdd(&out.conics[3 * gaussian + 1], m.xy);
    atomicAdd(&out.conics[3 * gaussian + 2], 0.5f * m.yy);
    atomicAdd(&out.opacities[gaussian], -m.one / s.opacity);
    if (out.absolute) {
        atomicAdd(&out.absolute[2 * gaussian], m.absolute_x);
        atomicAdd(&out.absolute[2 * gaussian + 1], m.absolute_y);
    }
    for (int c = 0; c < C; c++) {
        if (c < slice.count) atomicAdd(&out.features[size_t(gaussian) * channels + slice.first + c], grad_feature[c]);
    }
}

template <int C>
__global__ void __launch_bounds__(kWarpsPerBlock * kWarp)
    splat_gradients_kernel(SdRasterInputs in, ChannelSlice slice, const float* __restrict__ grad_image,
                           const float* __restrict__ grad_alpha, SdRasterScratch scratch, int buckets,
                           SdRasterGradients out) {
    SD_SHARED(Ring<C>, shared);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, bucket = blockIdx.x * kWarpsPerBlock + warp;
    const int tile = bucket < buckets ? scratch.bucket_tile[bucket] : -1;
    if (tile < 0) return;  // the whole warp; nothing below waits for other warps
    float(*ring)[kRing] = shared.grad[warp];

    const int columns = ceil_div(in.width, kTile);
    const int pair = in.tile_offsets[tile] + (bucket - first_bucket(in.tile_offsets, tile)) * kBucket + lane;
    const bool valid = pair < in.tile_offsets[tile + 1];
    const int gaussian = valid ? in.pair_gaussian[pair] : 0;
    const Splat splat = load_splat(in, gaussian);
    float feature[C], grad_feature[C] = {};
    for (int c = 0; c < C; c++) {
        feature[c] = valid && c < slice.count ? in.features[size_t(gaussian) * in.channels + slice.first + c] : 0.0f;
    }
    Stream stream = {tile % columns * kTile, tile / columns * kTile, 0, 0, size_t(bucket) * kTilePixels};
    limit_rows(splat, valid, in.limits.alpha_min, stream);

    Moments moments = {};
    PixelState loaded = {}, state = {};
    for (int step = 0; step < stream.pixel_count + kWarp - 1; step++) {
        if (step % kWarp == 0) {
            __syncwarp();  // the half of the ring that is overwritten has been read by all lanes
            loaded = load_pixels<C>(ring, in, slice, grad_image, grad_alpha, scratch, stream, step, lane);
            __syncwarp();
        }
        const PixelState head = {__shfl_sync(kFullWarp, loaded.transmittance, step % kWarp),
                                 __shfl_sync(kFullWarp, loaded.rest, step % kWarp)};
        state = {__shfl_up_sync(kFullWarp, state.transmittance, 1), __shfl_up_sync(kFullWarp, state.rest, 1)};
        if (lane == 0) state = head;
        const int k = step - lane;
        if (!valid || k < 0 || k >= stream.pixel_count || !(state.transmittance > 0.0f)) continue;
        const int in_tile = stream.first_row * kTile + k;
        const float dx = splat.x - (stream.tile_column + in_tile % kTile + 0.5f);
        const float dy = splat.y - (stream.tile_row + in_tile / kTile + 0.5f);
        meet<C>(splat, feature, ring, k % kRing, dx, dy, in.limits, out.absolute != nullptr, state, moments,
                grad_feature);
    }
    if (valid) add_gradients<C>(out, splat, moments, gaussian, in.channels, slice, grad_feature);
}

int tile_count(const SdRasterInputs& in) { return ceil_div(in.width, kTile) * ceil_div(in.height, kTile); }

struct RunSlice {
    const SdRasterInputs* in;
    const float *grad_image, *grad_alpha;
    const SdRasterGradients* out;
    const SdRasterScratch* scratch;
    void* stream;

    template <int C>
    int operator()(ChannelSlice slice) const {
        const int tiles = tile_count(*in), buckets = sd_cuda_raster_buckets(scratch->pairs, tiles);
        if (const int error = fill_bytes(scratch->bucket_tile, 0xFF, size_t(buckets) * sizeof(int), stream))
            return error;
        SD_LAUNCH(checkpoint_kernel<C>, dim3(tiles), dim3(kTilePixels), 0, stream, *in, slice, grad_image, grad_alpha,
                  *scratch);
        if (const int error = last_error()) return error;
        SD_LAUNCH(splat_gradients_kernel<C>, dim3(ceil_div(buckets, kWarpsPerBlock)), dim3(kWarpsPerBlock * kWarp), 0,
                  stream, *in, slice, grad_image, grad_alpha, *scratch, buckets, *out);
        return last_error();
    }
};

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_raster_buckets(int pairs, int tiles) { return pairs / kBucket + tiles; }

extern "C" int sd_cuda_raster_slice_channels() { return kMaxSlice; }

extern "C" int sd_cuda_raster_backward(const SdRasterInputs* in, const float* grad_image, const float* grad_alpha,
                                       const SdRasterGradients* out, const SdRasterScratch* scratch, void* stream) {
    const RunSlice run = {in, grad_image, grad_alpha, out, scratch, stream};
    if (const int error = for_each_slice(in->channels, run)) return error;
    return sum_columns(scratch->background_partials, tile_count(*in), in->channels, out->background, stream);
}
