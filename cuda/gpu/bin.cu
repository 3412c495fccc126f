// Which splats touch which tile, near to far.
//
// Idea    Sort N Gaussians by depth once; write (tile, Gaussian) pairs in that order; a stable sort by the tile alone
//         then leaves every tile's list sorted by depth. The keys of the large sort are ceil(log2 T) bits instead of
//         64.
// Test    A pair exists when the maximum of alpha over the tile's pixel centres reaches ALPHA_MIN: the quadratic form
//         is minimised exactly over the rectangle, so the list holds no tile that only a bounding box touches.
// Unit    one thread a Gaussian (count, fill), one thread a pair (ranges).
// Bytes   N * (44 + sort of 8) + M * (8 written + sort of 8 + 8 read). Bound: memory, the sorts dominate.
// Source  sort once: Faster-GS, Splatshop; exact tiles: Speedy-Splat (SnugBox, AccuTile).
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kCulledKey = 0xffffffffu;  // behind every depth

// Smallest d^T K d / 2 for d in the rectangle [x0, x1] x [y0, y1] around the mean. The minimum of a convex form over a
// rectangle that misses the origin lies on a side that faces it; both candidates are points of the rectangle.
__device__ __forceinline__ float smallest_power(float a, float b, float c, float x0, float x1, float y0, float y1) {
    const float near_x = fminf(fmaxf(0.0f, x0), x1), near_y = fminf(fmaxf(0.0f, y0), y1);
    const float y = fminf(fmaxf(-b * near_x / c, y0), y1), x = fminf(fmaxf(-b * near_y / a, x0), x1);
    const float on_x = 0.5f * (a * near_x * near_x + c * y * y) + b * near_x * y;
    const float on_y = 0.5f * (a * x * x + c * near_y * near_y) + b * x * near_y;
    return fminf(on_x, on_y);
}

// Calls visit(tile) for every tile that splat i reaches, row by row.
template <class Visit>
__device__ __forceinline__ void for_each_tile(const SdBinInputs& in, int i, Visit visit) {
    const float half_x = in.extents[2 * i], half_y = in.extents[2 * i + 1];
    if (!(half_x > 0.0f && half_y > 0.0f)) return;
    const float x = in.means2d[2 * i], y = in.means2d[2 * i + 1];
    const float a = in.conics[3 * i], b = in.conics[3 * i + 1], c = in.conics[3 * i + 2];
    // The relative slack covers the rounding of the form itself; a tile too many costs time, one too few costs an edge.
    const float largest_power = logf(in.opacities[i] / in.limits.alpha_min) * (1.0f + 1e-5f) + 1e-5f;
    const int columns = ceil_div(in.width, kTile), rows = ceil_div(in.height, kTile);
    const float tile = float(kTile);
    const int first_column = int(fmaxf(floorf((x - half_x) / tile), 0.0f));
    const int last_column = int(fminf(floorf((x + half_x) / tile), float(columns - 1)));
    const int first_row = int(fmaxf(floorf((y - half_y) / tile), 0.0f));
    const int last_row = int(fminf(floorf((y + half_y) / tile), float(rows - 1)));
    for (int row = first_row; row <= last_row; row++) {
        for (int column = first_column; column <= last_column; column++) {
            const float x0 = column * tile + 0.5f - x, y0 = row * tile + 0.5f - y;
            if (smallest_power(a, b, c, x0, x0 + tile - 1, y0, y0 + tile - 1) <= largest_power)
                visit(row * columns + column);
        }
    }
}

__global__ void __launch_bounds__(kThreads)
    depth_keys_kernel(SdBinInputs in, uint32_t* keys, int* indices, int* not_finite) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= in.count) return;
    if (in.extents[2 * i] < 0.0f) atomicAdd(not_finite, 1);
    const bool visible = in.extents[2 * i] > 0.0f;
    keys[i] = visible ? uint32_t(__float_as_int(in.depths[i])) : kCulledKey;  // positive floats order like their bits
    indices[i] = i;
}

__global__ void __launch_bounds__(kThreads) count_tiles_kernel(SdBinInputs in, const int* order, int* tiles) {
    const int k = blockIdx.x * kThreads + threadIdx.x;
    if (k > in.count) return;
    int touched = 0;
    if (k < in.count) for_each_tile(in, order[k], [&](int) { touched++; });
    tiles[k] = touched;
}

__global__ void __launch_bounds__(kThreads)
    fill_pairs_kernel(SdBinInputs in, const int* order, const int* offsets, uint32_t* keys, int* gaussians) {
    const int k = blockIdx.x * kThreads + threadIdx.x;
    if (k >= in.count) return;
    int slot = offsets[k];
    const int i = order[k];
    for_each_tile(in, i, [&](int tile) {
        keys[slot] = uint32_t(tile);
        gaussians[slot] = i;
        slot++;
    });
}

// Thread p closes every tile between the tile of pair p - 1 and the tile of pair p.
__global__ void __launch_bounds__(kThreads)
    tile_offsets_kernel(const uint32_t* keys, int pairs, int tiles, int* tile_offsets) {
    const int p = blockIdx.x * kThreads + threadIdx.x;
    if (p > pairs) return;
    const int before = p == 0 ? -1 : int(keys[p - 1]), here = p == pairs ? tiles : int(keys[p]);
    for (int tile = before + 1; tile <= here; tile++) tile_offsets[tile] = p;
}

int bits_for(int values) {
    int bits = 1;
    while ((1ll << bits) < values) bits++;
    return bits;
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_bin_count(const SdBinInputs* in, const SdBinOrder* order, void* stream) {
    const dim3 blocks(ceil_div(in->count + 1, kThreads));
    int* not_finite = order->offsets + in->count + 1;
    if (const int error = fill_bytes(not_finite, 0, sizeof(int), stream)) return error;
    SD_LAUNCH(depth_keys_kernel, blocks, dim3(kThreads), 0, stream, *in, order->keys, order->indices, not_finite);
    if (const int error = last_error()) return error;
    const SortPairs pairs = {order->keys, order->sorted_keys, order->indices, order->order};
    if (const int error = stable_sort_pairs(pairs, in->count, 32, order->scratch, order->scratch_bytes, stream))
        return error;
    SD_LAUNCH(count_tiles_kernel, blocks, dim3(kThreads), 0, stream, *in, order->order, order->tiles);
    if (const int error = last_error()) return error;
    return exclusive_sum(order->tiles, order->offsets, in->count + 1, order->scratch, order->scratch_bytes, stream);
}

extern "C" int sd_cuda_bin_fill(const SdBinInputs* in, const SdBinOrder* order, const SdBinPairs* pairs, void* stream) {
    const int tiles = ceil_div(in->width, kTile) * ceil_div(in->height, kTile);
    if (pairs->count > 0) {
        SD_LAUNCH(fill_pairs_kernel, dim3(ceil_div(in->count, kThreads)), dim3(kThreads), 0, stream, *in, order->order,
                  order->offsets, pairs->keys, pairs->gaussians);
        if (const int error = last_error()) return error;
        const SortPairs by_tile = {pairs->keys, pairs->sorted_keys, pairs->gaussians, pairs->sorted_gaussians};
        if (const int error =
                stable_sort_pairs(by_tile, pairs->count, bits_for(tiles), pairs->scratch, pairs->scratch_bytes, stream))
            return error;
    }
    SD_LAUNCH(tile_offsets_kernel, dim3(ceil_div(pairs->count + 1, kThreads)), dim3(kThreads), 0, stream,
              pairs->sorted_keys, pairs->count, tiles, pairs->tile_offsets);
    return last_error();
}
