// A splat inside a tile: its alpha at a pixel, and which part of the tile it can reach. Shared by the raster kernels.
//
// The three raster kernels must take the same decisions (below ALPHA_MIN? transmittance spent?) at every pixel. Alpha
// and the next transmittance are therefore spelled with explicit fused multiply-adds: no compiler choice can separate
// them.
#pragma once

#include "device.h"
#include "launchers.h"

namespace scene_distill {

struct Splat {
    float x, y;     // px
    float a, b, c;  // conic, upper triangle
    float opacity;
};

__device__ __forceinline__ Splat load_splat(const SdRasterInputs& in, int gaussian) {
    return {in.means2d[2 * gaussian],    in.means2d[2 * gaussian + 1], in.conics[3 * gaussian],
            in.conics[3 * gaussian + 1], in.conics[3 * gaussian + 2],  in.opacities[gaussian]};
}

// alpha = min(ALPHA_MAX, opacity * exp(-(a dx^2 + 2 b dx dy + c dy^2) / 2)).
__device__ __forceinline__ float splat_alpha(const Splat& s, float dx, float dy, float alpha_max) {
    const float diagonal = fmaf(s.a * dx, dx, s.c * dy * dy);
    const float power = fmaf(s.b * dx, dy, 0.5f * diagonal);
    return fminf(alpha_max, s.opacity * __expf(-power));
}

__device__ __forceinline__ float next_transmittance(float transmittance, float alpha) {
    return fmaf(-alpha, transmittance, transmittance);
}

struct Reach {
    float half_x, half_y;  // px; no pixel further away gets ALPHA_MIN
};

// Slightly generous; everything when the conic is too elongated for its determinant to be trusted in float32.
__device__ __forceinline__ Reach splat_reach(const Splat& s, float alpha_min) {
    const float det = s.a * s.c - s.b * s.b, product = s.a * s.c;
    if (!(det > 1e-3f * product)) return {1e30f, 1e30f};
    const float reach = 2.0f * logf(fmaxf(s.opacity, alpha_min) / alpha_min) / det;
    return {1.001f * sqrtf(reach * s.c) + 0.01f, 1.001f * sqrtf(reach * s.a) + 0.01f};
}

// Channels are rendered in slices of at most 32: alpha is recomputed for each slice, everything else is linear in
// channels.
struct ChannelSlice {
    int first, count;
};

constexpr int kMaxSlice = 32;

// Calls run<C>(slice) for each slice with the smallest kernel width C in {3, 4, 8, 16, 32} that holds it.
template <class Run>
int for_each_slice(int channels, Run run) {
    for (int first = 0; first < channels; first += kMaxSlice) {
        const int left = channels - first;
        const ChannelSlice slice = {first, left < kMaxSlice ? left : kMaxSlice};
        int error = 0;
        if (left <= 3) error = run.template operator()<3>(slice);
        else if (left <= 4) error = run.template operator()<4>(slice);
        else if (left <= 8) error = run.template operator()<8>(slice);
        else if (left <= 16) error = run.template operator()<16>(slice);
        else error = run.template operator()<32>(slice);
        if (error) return error;
    }
    return 0;
}

}  // namespace scene_distill
