// Splats as a file stores them -> screen ellipses and colours, forward and backward: activations, projection and harmonics in
// one pass.
//
//   scale = exp(log_scale),   opacity = sigmoid(opacity_logit),   then project.h and harmonics.h
//
// Work unit: one vector of Gaussians, chunks of 1024 over the pool. Bytes at degree 3: 236 read and 48 written per Gaussian
// forward, 292 read and 236 written backward. Bound: memory. What it saves over the parts: activated copies and their
// gradients, a second reading of the means, the sum of two gradients of the means. The camera is a constant here.
#pragma once
#include "harmonics.h"
#include "project.h"

namespace sd::SD_ISA {

constexpr float kLargestLog = 88.72f;  // whose exponential is finite

struct StoredLanes : GaussianLanes {  // activated
    Mask valid;                       // neither NaN nor infinite
    StoredLanes(const sd_splats& in, int64_t i, int n)
        : GaussianLanes(in.means, in.quats, in.log_scales, in.opacity_logits, i, n) {
        valid = opacity <= opacity;  // false for a NaN, which the exponential would forget
        for (int k = 0; k < 3; ++k) valid = valid & (scale[k] < kLargestLog), scale[k] = exp(scale[k]);
        opacity = sigmoid(min(max(opacity, -kLargestLog), kLargestLog));
        valid = valid & finite() & first_lanes(n);
    }
};

struct StoredPass {
    const sd_splats& in;
    const sd_view& view;
    const sd_limits& limits;
    CameraLanes camera;
    float center[3];
    sd_harmonics harmonics;

    StoredPass(const sd_splats& splats, const sd_view& seen_by, const sd_limits& thresholds)
        : in(splats), view(seen_by), limits(thresholds), camera(seen_by, thresholds) {
        const float* m = view.cam_from_world;
        for (int j = 0; j < 3; ++j) center[j] = -(m[j] * m[3] + m[4 + j] * m[7] + m[8 + j] * m[11]);
        harmonics = {in.count, in.bases, in.degree, in.means, in.sh, center, nullptr};
    }
    int64_t forward(const sd_splat_screen& out) const;
    void backward(const sd_splat_screen& drawn, const sd_splat_screen& v, const sd_splats_gradient& out) const;
};

// Returns how many Gaussians are NaN or infinite.
inline int64_t StoredPass::forward(const sd_splat_screen& out) const {
    const ScreenOut screen = {out.means2d, out.conics, out.depths, out.opacities2d, out.extents};
    Scratch scratch;
    int64_t* bad = scratch.array<int64_t>(0, in.count / kHarmonicsChunk + 1);
    parallel_chunks(in.count, kHarmonicsChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        int64_t wrong = 0;
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            StoredLanes g(in, i, n);
            wrong += n - count(g.valid);
            Floats values[9];
            project_lanes(camera, g, view, limits, n, values);
            screen.write(i, n, values);
            if (in.sh) harmonics_lanes(harmonics, HarmonicsLanes(g.mean, center, values[7] > 0.0f), i, n, out.colors);
        }
        bad[chunk] = wrong;
    });
    int64_t wrong = 0;
    for (int64_t chunk = 0; chunk * kHarmonicsChunk < in.count; ++chunk) wrong += bad[chunk];
    return wrong;
}

inline void StoredPass::backward(const sd_splat_screen& drawn, const sd_splat_screen& v, const sd_splats_gradient& out) const {
    const ScreenGradient grad = {v.means2d, v.conics, v.depths, v.opacities2d};
    const WorldGradient world = {out.means, out.quats, out.log_scales, out.opacity_logits};
    parallel_chunks(in.count, kHarmonicsChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            Mask seen = load_strided(drawn.extents + 2 * i, 2, n) > 0.0f;
            StoredLanes g(in, i, n);
            Floats by_color[3] = {0.0f, 0.0f, 0.0f};
            if (in.sh)
                harmonics_lanes_backward(harmonics, HarmonicsLanes(g.mean, center, seen), i, n, drawn.colors, v.colors, out.sh,
                                         by_color);
            if (!any(seen)) {
                zero_rows(world, i, n);
                continue;
            }
            GaussianGradientLanes pulled;
            project_lanes_backward(camera, g, view, limits, grad, i, n, seen, pulled, nullptr);
            for (int k = 0; k < 3; ++k)
                pulled.mean[k] = pulled.mean[k] + by_color[k], pulled.scale[k] = pulled.scale[k] * g.scale[k];
            pulled.opacity = pulled.opacity * g.opacity * (1.0f - g.opacity);
            pulled.write(world, seen, i, n);
        }
    });
}

}  // namespace sd::SD_ISA
