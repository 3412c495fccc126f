// Projection: world Gaussians -> screen ellipses, forward and backward (3DGS, EWA splatting).
//
// Work unit: one vector of Gaussians, chunks of 2048 over the pool. Bytes: 44 read, 40 written per Gaussian forward; twice that
// backward. Bound: memory on all ISAs once most Gaussians are visible; a vector whose lanes are all transparent or behind the
// camera costs its loads only. The covariance is kept as a factor U (2x3, Sigma = U U^T + eps I), so its determinant is a sum
// of squares |u0 x u1|^2 + eps (|u0|^2 + |u1|^2) + eps^2 and does not cancel for needles.
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int64_t kProjectChunk = 2048;

struct CameraLanes {
    Floats w[9], t[3], fx, fy, cx, cy, low_x, high_x, low_y, high_y;
    bool orthographic;
    explicit CameraLanes(const sd_view& view, const sd_limits& limits) {
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) w[3 * i + j] = view.cam_from_world[4 * i + j];
            t[i] = view.cam_from_world[4 * i + 3];
        }
        float f0 = view.intrinsics[0], f1 = view.intrinsics[1], c0 = view.intrinsics[2], c1 = view.intrinsics[3];
        float margin_x = limits.frustum_margin * 0.5f * view.width / f0;
        float margin_y = limits.frustum_margin * 0.5f * view.height / f1;
        fx = f0, fy = f1, cx = c0, cy = c1, orthographic = view.orthographic;
        low_x = -c0 / f0 - margin_x, high_x = (view.width - c0) / f0 + margin_x;
        low_y = -c1 / f1 - margin_y, high_y = (view.height - c1) / f1 + margin_y;
    }
};

struct GaussianLanes {
    Floats mean[3], quat[4], scale[3], opacity, norm;  // quat is unit, norm its length before
    GaussianLanes(const float* means, const float* quats, const float* scales, const float* opacities, int64_t i, int n) {
        for (int k = 0; k < 3; ++k) mean[k] = load_strided(means + 3 * i + k, 3, n);
        for (int k = 0; k < 4; ++k) quat[k] = load_strided(quats + 4 * i + k, 4, n);
        for (int k = 0; k < 3; ++k) scale[k] = load_strided(scales + 3 * i + k, 3, n);
        opacity = load_first(opacities + i, n);
    }
    Mask finite() const {
        Floats total = opacity;
        for (int k = 0; k < 3; ++k) total = total + mean[k] + scale[k];
        for (int k = 0; k < 4; ++k) total = total + quat[k];
        Floats zero = total - total;  // NaN for NaN and infinity
        return zero >= 0.0f;
    }
    void normalise() {
        Floats square = quat[0] * quat[0];
        for (int k = 1; k < 4; ++k) square = fma(quat[k], quat[k], square);
        norm = max(sqrt(square), 1e-12f);
        Floats inverse = 1.0f / norm;
        for (int k = 0; k < 4; ++k) quat[k] = quat[k] * inverse;
    }
};

// Everything between a Gaussian and its screen ellipse that the backward pass needs again.
struct EllipseLanes {
    Floats cam[3], inverse_z, ratio_x, ratio_y;  // ratios: clamped x/z, y/z of the Jacobian
    Mask inside_x, inside_y;                     // where the clamp is not active
    Floats rot[9], j00, j02, j11, j12, t[2][3], v[2][3], u[2][3];
    Floats a, b, c, det, det_sharp;  // covariance [a b; b c] with the low-pass; determinants with and without

    void place(const CameraLanes& k, const GaussianLanes& g) {
        for (int i = 0; i < 3; ++i)
            cam[i] = fma(k.w[3 * i], g.mean[0], fma(k.w[3 * i + 1], g.mean[1], fma(k.w[3 * i + 2], g.mean[2], k.t[i])));
    }

    void shape(const CameraLanes& k, const GaussianLanes& g, Floats eps) {
        Floats w = g.quat[0], x = g.quat[1], y = g.quat[2], z = g.quat[3];
        Floats xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z, wx = w * x, wy = w * y, wz = w * z;
        rot[0] = 1.0f - 2.0f * (yy + zz), rot[1] = 2.0f * (xy - wz), rot[2] = 2.0f * (xz + wy);
        rot[3] = 2.0f * (xy + wz), rot[4] = 1.0f - 2.0f * (xx + zz), rot[5] = 2.0f * (yz - wx);
        rot[6] = 2.0f * (xz - wy), rot[7] = 2.0f * (yz + wx), rot[8] = 1.0f - 2.0f * (xx + yy);
        inverse_z = k.orthographic ? Floats(1.0f) : 1.0f / cam[2];  // u = f x + c: the Jacobian is diag(fx, fy)
        Floats rx = cam[0] * inverse_z, ry = cam[1] * inverse_z;
        ratio_x = min(max(rx, k.low_x), k.high_x), ratio_y = min(max(ry, k.low_y), k.high_y);
        inside_x = (rx >= k.low_x) & (rx <= k.high_x), inside_y = (ry >= k.low_y) & (ry <= k.high_y);
        j00 = k.fx * inverse_z, j11 = k.fy * inverse_z, j02 = -j00 * ratio_x, j12 = -j11 * ratio_y;
        if (k.orthographic) j02 = 0.0f, j12 = 0.0f;
        for (int j = 0; j < 3; ++j) {
            t[0][j] = fma(j00, k.w[j], j02 * k.w[6 + j]);
            t[1][j] = fma(j11, k.w[3 + j], j12 * k.w[6 + j]);
        }
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 3; ++j) {
                v[i][j] = fma(t[i][0], rot[j], fma(t[i][1], rot[3 + j], t[i][2] * rot[6 + j]));
                u[i][j] = v[i][j] * g.scale[j];
            }
        Floats a0 = fma(u[0][0], u[0][0], fma(u[0][1], u[0][1], u[0][2] * u[0][2]));
        Floats c0 = fma(u[1][0], u[1][0], fma(u[1][1], u[1][1], u[1][2] * u[1][2]));
        b = fma(u[0][0], u[1][0], fma(u[0][1], u[1][1], u[0][2] * u[1][2]));
        Floats n0 = difference_of_products(u[0][1], u[1][2], u[0][2], u[1][1]);
        Floats n1 = difference_of_products(u[0][2], u[1][0], u[0][0], u[1][2]);
        Floats n2 = difference_of_products(u[0][0], u[1][1], u[0][1], u[1][0]);
        det_sharp = fma(n0, n0, fma(n1, n1, n2 * n2));
        det = fma(eps, a0 + c0 + eps, det_sharp);
        a = a0 + eps, c = c0 + eps;
    }
    Floats compensation() const { return sqrt(det_sharp / det); }
};

struct ScreenOut {
    float *means2d, *conics, *depths, *opacities2d, *extents;
    void write(int64_t i, int n, const Floats (&values)[9]) const {
        for (int k = 0; k < 2; ++k) store_strided(means2d + 2 * i + k, 2, values[k], n);
        for (int k = 0; k < 3; ++k) store_strided(conics + 3 * i + k, 3, values[2 + k], n);
        store_first(depths + i, values[5], n);
        store_first(opacities2d + i, values[6], n);
        for (int k = 0; k < 2; ++k) store_strided(extents + 2 * i + k, 2, values[7 + k], n);
    }
};

inline void project_lanes(const CameraLanes& camera, GaussianLanes& g, const sd_view& view, const sd_limits& limits, int n,
                          Floats (&out)[9]) {
    for (auto& value : out) value = 0.0f;
    EllipseLanes e;
    e.place(camera, g);
    Mask seen = (e.cam[2] >= limits.near_m) & (g.opacity >= limits.alpha_min) & first_lanes(n);
    if (!any(seen)) return;
    g.normalise();
    e.shape(camera, g, limits.eps2d);
    Floats opacity = view.antialiased ? g.opacity * e.compensation() : g.opacity;
    Floats inverse_det = 1.0f / e.det;
    Floats qa = e.c * inverse_det, qb = -e.b * inverse_det, qc = e.a * inverse_det;
    // Rounding may leave the conic of an extreme needle indefinite; keep it an ellipse (aspect about 3000 : 1).
    Floats product = qa * qc;
    Mask needle = difference_of_products(qa, qc, qb, qb) < product * 4e-7f;
    if (any(needle)) qb = select(needle, copy_sign(sqrt(product) * 0.9999998f, qb), qb);
    seen = seen & (opacity >= limits.alpha_min);
    Floats cut = max(2.0f * kLn2 * log2(opacity * (1.0f / limits.alpha_min)), 0.0f);
    Floats ex = sqrt(cut * e.a), ey = sqrt(cut * e.c);
    Floats px = fma(camera.fx, e.cam[0] * e.inverse_z, camera.cx), py = fma(camera.fy, e.cam[1] * e.inverse_z, camera.cy);
    seen = seen & (px + ex >= 0.5f) & (px - ex <= view.width - 0.5f) & (py + ey >= 0.5f) & (py - ey <= view.height - 0.5f);
    Floats zero = (ex + ey + qa + qc) - (ex + ey + qa + qc);
    seen = seen & (zero >= 0.0f);  // overflow: not drawable
    const Floats values[9] = {px, py, qa, qb, qc, e.cam[2], opacity, max(ex, 1e-6f), max(ey, 1e-6f)};
    for (int k = 0; k < 9; ++k) out[k] = zero_unless(seen, values[k]);
}

inline int64_t project_forward(int64_t total, const float* means, const float* quats, const float* scales,
                               const float* opacities, const sd_view& view, const sd_limits& limits, const ScreenOut& screen) {
    CameraLanes camera(view, limits);
    Scratch scratch;
    int64_t* bad = scratch.array<int64_t>(0, total / kProjectChunk + 1);
    parallel_chunks(total, kProjectChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        int64_t wrong = 0;
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            GaussianLanes g(means, quats, scales, opacities, i, n);
            wrong += n - count(g.finite() & first_lanes(n));
            Floats out[9];
            project_lanes(camera, g, view, limits, n, out);
            screen.write(i, n, out);
        }
        bad[chunk] = wrong;
    });
    int64_t wrong = 0;
    for (int64_t chunk = 0; chunk * kProjectChunk < total; ++chunk) wrong += bad[chunk];
    return wrong;
}

struct ScreenGradient {
    const float *means2d, *conics, *depths, *opacities2d;  // any may be null
};

struct WorldGradient {
    float *means, *quats, *scales, *opacities;
};

struct GaussianGradientLanes {  // of one vector
    Floats mean[3], quat[4], scale[3], opacity;
    void write(const WorldGradient& out, Mask seen, int64_t i, int n) const {
        for (int k = 0; k < 3; ++k) {
            store_strided(out.means + 3 * i + k, 3, zero_unless(seen, mean[k]), n);
            store_strided(out.scales + 3 * i + k, 3, zero_unless(seen, scale[k]), n);
        }
        for (int k = 0; k < 4; ++k) store_strided(out.quats + 4 * i + k, 4, zero_unless(seen, quat[k]), n);
        store_first(out.opacities + i, zero_unless(seen, opacity), n);
    }
};

struct CameraGradientLanes {  // sums over Gaussians
    Floats w[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0}, t[3] = {0, 0, 0}, f[4] = {0, 0, 0, 0};
};

// dL/d(covariance) from dL/d(conic) and, when antialiased, from the compensation.
inline void covariance_gradient(const EllipseLanes& e, const Floats (&v_conic)[3], Floats v_opacity2d, Floats opacity,
                                bool antialiased, Floats eps, Floats (&v)[3]) {
    Floats inverse_det = 1.0f / e.det;
    Floats a = e.c * inverse_det, b = -e.b * inverse_det, c = e.a * inverse_det, half = 0.5f * v_conic[1];
    Floats m00 = fma(a, v_conic[0], b * half), m01 = fma(a, half, b * v_conic[2]);
    Floats m10 = fma(b, v_conic[0], c * half), m11 = fma(b, half, c * v_conic[2]);
    v[0] = -fma(m00, a, m01 * b), v[1] = -2.0f * fma(m00, b, m01 * c), v[2] = -fma(m10, b, m11 * c);
    if (!antialiased) return;
    Floats share = 0.5f * v_opacity2d * opacity * e.compensation();  // dL/d(ln det_sharp) = -dL/d(ln det)
    Mask flat = e.det_sharp <= 1e-12f;
    Floats sharp = zero_unless(e.det_sharp > 1e-12f, share / select(flat, Floats(1.0f), e.det_sharp));
    Floats blurred = zero_unless(e.det_sharp > 1e-12f, share * inverse_det);
    v[0] = v[0] + (e.c - eps) * sharp - e.c * blurred;
    v[1] = v[1] - 2.0f * e.b * (sharp - blurred);
    v[2] = v[2] + (e.a - eps) * sharp - e.a * blurred;
}

// From the covariance U U^T, U = T R S, to scales, rotation and T.
inline void factor_gradient(const EllipseLanes& e, const GaussianLanes& g, const Floats (&v_cov)[3], Floats (&v_scale)[3],
                            Floats (&v_rot)[9], Floats (&v_t)[2][3]) {
    Floats v_v[2][3];
    for (int j = 0; j < 3; ++j) {
        Floats v_u0 = fma(2.0f * v_cov[0], e.u[0][j], v_cov[1] * e.u[1][j]);
        Floats v_u1 = fma(2.0f * v_cov[2], e.u[1][j], v_cov[1] * e.u[0][j]);
        v_scale[j] = fma(v_u0, e.v[0][j], v_u1 * e.v[1][j]);
        v_v[0][j] = v_u0 * g.scale[j], v_v[1][j] = v_u1 * g.scale[j];
    }
    for (int k = 0; k < 3; ++k)
        for (int j = 0; j < 3; ++j) v_rot[3 * k + j] = fma(e.t[0][k], v_v[0][j], e.t[1][k] * v_v[1][j]);
    for (int r = 0; r < 2; ++r)
        for (int k = 0; k < 3; ++k)
            v_t[r][k] = fma(v_v[r][0], e.rot[3 * k], fma(v_v[r][1], e.rot[3 * k + 1], v_v[r][2] * e.rot[3 * k + 2]));
}

inline void quaternion_gradient(const GaussianLanes& g, const Floats (&r)[9], Floats (&out)[4]) {
    Floats w = g.quat[0], x = g.quat[1], y = g.quat[2], z = g.quat[3];
    Floats s01 = r[1] + r[3], s02 = r[2] + r[6], s12 = r[5] + r[7];
    Floats d21 = r[7] - r[5], d02 = r[2] - r[6], d10 = r[3] - r[1];
    Floats v[4] = {x * d21 + y * d02 + z * d10, y * s01 + z * s02 + w * d21 - 2.0f * x * (r[4] + r[8]),
                   x * s01 + z * s12 + w * d02 - 2.0f * y * (r[0] + r[8]), x * s02 + y * s12 + w * d10 - 2.0f * z * (r[0] + r[4])};
    Floats along = v[0] * w + v[1] * x + v[2] * y + v[3] * z, scale = 2.0f / g.norm;
    for (int k = 0; k < 4; ++k) out[k] = scale * fnma(along, g.quat[k], v[k]);
}

// Adds the camera's share of one vector; v_t2: gradient of the 2x3 matrix T = J W, v_cam: of the point in the camera frame.
inline void add_camera_gradient(const EllipseLanes& e, const GaussianLanes& g, const Floats (&v_t)[2][3],
                                const Floats (&v_cam)[3], const Floats (&v_f)[4], Mask seen, CameraGradientLanes& sum) {
    for (int j = 0; j < 3; ++j) {
        Floats by_row[3] = {e.j00 * v_t[0][j], e.j11 * v_t[1][j], fma(e.j02, v_t[0][j], e.j12 * v_t[1][j])};
        for (int i = 0; i < 3; ++i) sum.w[3 * i + j] = sum.w[3 * i + j] + zero_unless(seen, fma(v_cam[i], g.mean[j], by_row[i]));
    }
    for (int i = 0; i < 3; ++i) sum.t[i] = sum.t[i] + zero_unless(seen, v_cam[i]);
    for (int i = 0; i < 4; ++i) sum.f[i] = sum.f[i] + zero_unless(seen, v_f[i]);
}

inline void project_lanes_backward(const CameraLanes& camera, GaussianLanes& g, const sd_view& view, const sd_limits& limits,
                                   const ScreenGradient& grad, int64_t i, int n, Mask seen, GaussianGradientLanes& out,
                                   CameraGradientLanes* camera_sum) {
    Floats zero = 0.0f, v_mean2d[2] = {zero, zero}, v_conic[3] = {zero, zero, zero}, v_depth = zero, v_opacity = zero;
    for (int k = 0; k < 2 && grad.means2d; ++k) v_mean2d[k] = load_strided(grad.means2d + 2 * i + k, 2, n);
    for (int k = 0; k < 3 && grad.conics; ++k) v_conic[k] = load_strided(grad.conics + 3 * i + k, 3, n);
    if (grad.depths) v_depth = load_first(grad.depths + i, n);
    if (grad.opacities2d) v_opacity = load_first(grad.opacities2d + i, n);
    g.normalise();
    EllipseLanes e;
    e.place(camera, g);
    e.shape(camera, g, limits.eps2d);
    Floats v_cov[3], v_rot[9], v_t[2][3];
    covariance_gradient(e, v_conic, v_opacity, g.opacity, view.antialiased, limits.eps2d, v_cov);
    if (view.antialiased) v_opacity = v_opacity * e.compensation();
    factor_gradient(e, g, v_cov, out.scale, v_rot, v_t);

    Floats v_j00 = zero, v_j02 = zero, v_j11 = zero, v_j12 = zero;
    for (int k = 0; k < 3; ++k) {
        v_j00 = fma(v_t[0][k], camera.w[k], v_j00), v_j02 = fma(v_t[0][k], camera.w[6 + k], v_j02);
        v_j11 = fma(v_t[1][k], camera.w[3 + k], v_j11), v_j12 = fma(v_t[1][k], camera.w[6 + k], v_j12);
    }
    // u = f x/z + c,  J00 = f/z,  J02 = -f ratio/z with ratio = clamp(x/z)
    Floats rx = e.cam[0] * e.inverse_z, ry = e.cam[1] * e.inverse_z;
    bool flat = camera.orthographic;
    Floats v_rx = fma(camera.fx, v_mean2d[0], flat ? zero : zero_unless(e.inside_x, -e.j00 * v_j02));
    Floats v_ry = fma(camera.fy, v_mean2d[1], flat ? zero : zero_unless(e.inside_y, -e.j11 * v_j12));
    Floats along_x = fma(e.j00, v_j00, e.j02 * v_j02), along_y = fma(e.j11, v_j11, e.j12 * v_j12);
    Floats v_cam[3] = {v_rx * e.inverse_z, v_ry * e.inverse_z, zero};
    v_cam[2] = flat ? v_depth : v_depth - e.inverse_z * (fma(v_rx, rx, v_ry * ry) + along_x + along_y);

    for (int k = 0; k < 3; ++k)
        out.mean[k] = fma(camera.w[k], v_cam[0], fma(camera.w[3 + k], v_cam[1], camera.w[6 + k] * v_cam[2]));
    quaternion_gradient(g, v_rot, out.quat);
    out.opacity = v_opacity;
    if (camera_sum) {
        const Floats v_f[4] = {fma(rx, v_mean2d[0], along_x / camera.fx), fma(ry, v_mean2d[1], along_y / camera.fy), v_mean2d[0],
                               v_mean2d[1]};
        add_camera_gradient(e, g, v_t, v_cam, v_f, seen, *camera_sum);
    }
}

inline void zero_rows(const WorldGradient& out, int64_t i, int n) {
    for (int k = 0; k < 3 * n; ++k) out.means[3 * i + k] = out.scales[3 * i + k] = 0.0f;
    for (int k = 0; k < 4 * n; ++k) out.quats[4 * i + k] = 0.0f;
    for (int k = 0; k < n; ++k) out.opacities[i + k] = 0.0f;
}

inline void project_backward(int64_t total, const float* means, const float* quats, const float* scales, const float* opacities,
                             const sd_view& view, const sd_limits& limits, const float* extents, const ScreenGradient& grad,
                             const WorldGradient& out, float* v_cam_from_world, float* v_intrinsics) {
    CameraLanes camera(view, limits);
    Scratch scratch;
    int64_t chunks = (total + kProjectChunk - 1) / kProjectChunk;
    float(*partial)[16] = scratch.array<float[16]>(0, chunks);
    bool with_camera = v_cam_from_world || v_intrinsics;
    parallel_chunks(total, kProjectChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        CameraGradientLanes sums;
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            Mask seen = load_strided(extents + 2 * i, 2, n) > 0.0f;
            if (!any(seen)) {
                zero_rows(out, i, n);
                continue;
            }
            GaussianLanes g(means, quats, scales, opacities, i, n);
            GaussianGradientLanes v;
            project_lanes_backward(camera, g, view, limits, grad, i, n, seen, v, with_camera ? &sums : nullptr);
            v.write(out, seen, i, n);
        }
        for (int k = 0; k < 9 && with_camera; ++k) partial[chunk][k] = sum(sums.w[k]);
        for (int k = 0; k < 3 && with_camera; ++k) partial[chunk][9 + k] = sum(sums.t[k]);
        for (int k = 0; k < 4 && with_camera; ++k) partial[chunk][12 + k] = sum(sums.f[k]);
    });
    if (!with_camera) return;
    double totals[16] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk)  // in chunk order: the same bytes on any number of threads
        for (int k = 0; k < 16; ++k) totals[k] += partial[chunk][k];
    for (int k = 0; k < 16 && v_cam_from_world; ++k) {
        int row = k / 4, column = k % 4;
        double value = row == 3 ? 0.0 : column == 3 ? totals[9 + row] : totals[3 * row + column];
        v_cam_from_world[k] = static_cast<float>(value);
    }
    for (int k = 0; k < 4 && v_intrinsics; ++k) v_intrinsics[k] = static_cast<float>(totals[12 + k]);
}

}  // namespace sd::SD_ISA
