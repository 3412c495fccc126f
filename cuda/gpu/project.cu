// World Gaussians to screen splats, and back through the chain rule.
//
// Idea    Sigma' = U U^T + eps I with U = J W R S (J the pinhole Jacobian, W the camera rotation): everything follows
//         from the two rows u0, u1 of U, and det(U U^T) = |u0 x u1|^2 (Cauchy-Binet) stays accurate for needles, where
//         a c - b^2 cancels. The backward recomputes U: cheaper than storing it.
// Unit    one thread a Gaussian.
// Bytes   forward 44 read + 36 written, backward 44 + 28 read + 44 written a Gaussian; camera gradients are summed per
//         block and then by column in a fixed order.
// Bound   memory.
// Source  3DGS (Kerbl 2023) section 4; EWA splatting (Zwicker 2001); compensation from Mip-Splatting (Yu 2024).
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 128;
constexpr int kCameraValues = 16;
constexpr float kInfinity = INFINITY;
constexpr float kSmallestExtent = 1e-6f;  // px; 0 means culled
constexpr float kNotFinite = -1.0f;       // extent of a Gaussian that bin.cu reports
constexpr float kNeedle = 0.9999998f;

struct Vec3 {
    float x, y, z;
};

struct Mat3 {
    float m[3][3];
};

__device__ __forceinline__ float dot(const Vec3& a, const Vec3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ __forceinline__ Vec3 cross(const Vec3& a, const Vec3& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
__device__ __forceinline__ Vec3 mix(float s, const Vec3& a, float t, const Vec3& b) {
    return {s * a.x + t * b.x, s * a.y + t * b.y, s * a.z + t * b.z};
}
__device__ __forceinline__ Vec3 load3(const float* p) { return {p[0], p[1], p[2]}; }
__device__ __forceinline__ Vec3 times(const Mat3& a, const Vec3& v) {
    return {a.m[0][0] * v.x + a.m[0][1] * v.y + a.m[0][2] * v.z, a.m[1][0] * v.x + a.m[1][1] * v.y + a.m[1][2] * v.z,
            a.m[2][0] * v.x + a.m[2][1] * v.y + a.m[2][2] * v.z};
}
__device__ __forceinline__ Vec3 transposed_times(const Mat3& a, const Vec3& v) {
    return {a.m[0][0] * v.x + a.m[1][0] * v.y + a.m[2][0] * v.z, a.m[0][1] * v.x + a.m[1][1] * v.y + a.m[2][1] * v.z,
            a.m[0][2] * v.x + a.m[1][2] * v.y + a.m[2][2] * v.z};
}

struct Quaternion {
    float w, x, y, z, inverse_norm;
};

__device__ __forceinline__ Quaternion load_unit_quaternion(const float* q) {
    const float norm2 = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
    const float inverse = 1.0f / sqrtf(fmaxf(norm2, 1e-24f));
    return {q[0] * inverse, q[1] * inverse, q[2] * inverse, q[3] * inverse, inverse};
}

__device__ __forceinline__ Mat3 rotation(const Quaternion& q) {
    const float w = q.w, x = q.x, y = q.y, z = q.z;
    return {{{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
             {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
             {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}}};
}

struct Camera {
    bool orthographic;
    Mat3 rotation;
    Vec3 translation;
    float fx, fy, cx, cy;
    float low_x, high_x, low_y, high_y;  // range of x/z and y/z in which the Jacobian is taken
};

__device__ __forceinline__ Camera load_camera(const SdWorldGaussians& in) {
    const float *cam_from_world = in.cam_from_world, *intrinsics = in.intrinsics;
    Camera camera;
    camera.orthographic = in.orthographic != 0;
    for (int row = 0; row < 3; row++) {
        for (int col = 0; col < 3; col++) camera.rotation.m[row][col] = cam_from_world[row * 4 + col];
    }
    camera.translation = {cam_from_world[3], cam_from_world[7], cam_from_world[11]};
    camera.fx = intrinsics[0];
    camera.fy = intrinsics[1];
    camera.cx = intrinsics[2];
    camera.cy = intrinsics[3];
    const float margin_x = 0.5f * in.limits.frustum_margin * in.width,
                margin_y = 0.5f * in.limits.frustum_margin * in.height;
    camera.low_x = (-camera.cx - margin_x) / camera.fx;
    camera.high_x = (in.width - camera.cx + margin_x) / camera.fx;
    camera.low_y = (-camera.cy - margin_y) / camera.fy;
    camera.high_y = (in.height - camera.cy + margin_y) / camera.fy;
    return camera;
}

// Everything between a Gaussian and its splat that both directions need.
struct Footprint {
    Vec3 mean_cam, scale;
    float inverse_z;  // 1 when orthographic: u = f x + c, and J = diag(fx, fy) without a third column
    float ratio_x, ratio_y;  // x/z, y/z, clamped to the camera's range: a splat far outside would explode the Jacobian
    bool clamped_x, clamped_y;
    Vec3 j0, j1;  // rows of J
    Quaternion quat;
    Mat3 orientation;
    Vec3 v0, v1;                                    // rows of J W
    Vec3 u0, u1;                                    // rows of J W R S
    float sharp_xx, sharp_xy, sharp_yy, sharp_det;  // U U^T
    float xx, xy, yy, det;                          // with the low-pass
    float compensation;                             // sqrt(sharp_det / det) when antialiased, else 1
};

__device__ __forceinline__ Footprint footprint(const SdWorldGaussians& in, const Camera& camera, int i) {
    Footprint f;
    f.mean_cam = times(camera.rotation, load3(in.means + 3 * i));
    f.mean_cam = mix(1.0f, f.mean_cam, 1.0f, camera.translation);
    f.scale = load3(in.scales + 3 * i);
    f.quat = load_unit_quaternion(in.quats + 4 * i);
    f.orientation = rotation(f.quat);
    const float inverse_z = f.inverse_z = camera.orthographic ? 1.0f : 1.0f / f.mean_cam.z;
    const Mat3& w = camera.rotation;
    const float ratio_x = f.mean_cam.x * inverse_z, ratio_y = f.mean_cam.y * inverse_z;
    f.ratio_x = fminf(fmaxf(ratio_x, camera.low_x), camera.high_x);
    f.ratio_y = fminf(fmaxf(ratio_y, camera.low_y), camera.high_y);
    f.clamped_x = f.ratio_x != ratio_x;
    f.clamped_y = f.ratio_y != ratio_y;
    f.j0 = {camera.fx * inverse_z, 0.0f, camera.orthographic ? 0.0f : -camera.fx * f.ratio_x * inverse_z};
    f.j1 = {0.0f, camera.fy * inverse_z, camera.orthographic ? 0.0f : -camera.fy * f.ratio_y * inverse_z};
    f.v0 = transposed_times(w, f.j0);
    f.v1 = transposed_times(w, f.j1);
    const Vec3 r0 = transposed_times(f.orientation, f.v0), r1 = transposed_times(f.orientation, f.v1);
    f.u0 = {r0.x * f.scale.x, r0.y * f.scale.y, r0.z * f.scale.z};
    f.u1 = {r1.x * f.scale.x, r1.y * f.scale.y, r1.z * f.scale.z};
    f.sharp_xx = dot(f.u0, f.u0);
    f.sharp_xy = dot(f.u0, f.u1);
    f.sharp_yy = dot(f.u1, f.u1);
    const Vec3 normal = cross(f.u0, f.u1);
    f.sharp_det = dot(normal, normal);
    const float eps = in.limits.eps2d_px2;
    f.xx = f.sharp_xx + eps;
    f.xy = f.sharp_xy;
    f.yy = f.sharp_yy + eps;
    f.det = f.sharp_det + eps * (f.sharp_xx + f.sharp_yy + eps);
    f.compensation = in.antialiased ? sqrtf(f.sharp_det / f.det) : 1.0f;
    return f;
}

// Rounding may leave the conic of an extreme needle indefinite; keep it an ellipse (aspect about 3000 : 1).
__device__ __forceinline__ float bounded_off_diagonal(float a, float b, float c) {
    const float limit = sqrtf(a * c) * kNeedle;
    return fminf(fmaxf(b, -limit), limit);
}

// 0 * x is 0 for every number and NaN for NaN and infinity.
__device__ __forceinline__ bool is_finite(const SdWorldGaussians& in, int i) {
    float zero = 0.0f * in.opacities[i];
    for (int k = 0; k < 3; k++) zero += 0.0f * in.means[3 * i + k] + 0.0f * in.scales[3 * i + k];
    for (int k = 0; k < 4; k++) zero += 0.0f * in.quats[4 * i + k];
    return zero == 0.0f;
}

__global__ void __launch_bounds__(kThreads) project_kernel(SdWorldGaussians in, SdProjected out) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= in.count) return;
    const Camera camera = load_camera(in);
    const Footprint f = footprint(in, camera, i);
    const float x = camera.fx * (f.mean_cam.x * f.inverse_z) + camera.cx;
    const float y = camera.fy * (f.mean_cam.y * f.inverse_z) + camera.cy;
    const float opacity = in.opacities[i] * f.compensation, alpha_min = in.limits.alpha_min;
    // The box where opacity * exp(-d^T Sigma'^-1 d / 2) >= ALPHA_MIN has half sides sqrt(reach * variance).
    const float reach = 2.0f * logf(fmaxf(opacity, alpha_min) / alpha_min);
    const float half_x = sqrtf(reach * f.xx), half_y = sqrtf(reach * f.yy);
    const float a = f.yy / f.det, c = f.xx / f.det, b = bounded_off_diagonal(a, -f.xy / f.det, c);
    const bool on_screen =
        x + half_x >= 0.5f && x - half_x <= in.width - 0.5f && y + half_y >= 0.5f && y - half_y <= in.height - 0.5f;
    const bool finite = half_x + half_y + a + c < kInfinity;  // false for NaN too
    const bool visible =
        f.mean_cam.z >= in.limits.near_m && in.opacities[i] >= alpha_min && opacity >= alpha_min && on_screen && finite;

    out.means2d[2 * i] = visible ? x : 0.0f;
    out.means2d[2 * i + 1] = visible ? y : 0.0f;
    out.conics[3 * i] = visible ? a : 0.0f;
    out.conics[3 * i + 1] = visible ? b : 0.0f;
    out.conics[3 * i + 2] = visible ? c : 0.0f;
    out.depths[i] = visible ? f.mean_cam.z : 0.0f;
    out.opacities[i] = visible ? opacity : 0.0f;
    const float culled = is_finite(in, i) ? 0.0f : kNotFinite;
    out.extents[2 * i] = visible ? fmaxf(half_x, kSmallestExtent) : culled;
    out.extents[2 * i + 1] = visible ? fmaxf(half_y, kSmallestExtent) : culled;
}

struct CovarianceGradient {
    float xx, xy, yy;  // xy counts both off-diagonal entries
};

// d(conic) -> d(Sigma') = -K (d conic) K, with K = Sigma'^-1 and the off-diagonal gradient split over both entries.
__device__ __forceinline__ CovarianceGradient conic_backward(const Footprint& f, float grad_a, float grad_b,
                                                             float grad_c) {
    const float a = f.yy / f.det, b = -f.xy / f.det, c = f.xx / f.det, half_b = 0.5f * grad_b;
    const float p00 = grad_a * a + half_b * b, p01 = grad_a * b + half_b * c;
    const float p10 = half_b * a + grad_c * b, p11 = half_b * b + grad_c * c;
    return {-(a * p00 + b * p10), -2.0f * (a * p01 + b * p11), -(b * p01 + c * p11)};
}

// compensation = sqrt(sharp_det / det), both functions of the entries of Sigma'.
__device__ __forceinline__ void compensation_backward(const Footprint& f, float grad, CovarianceGradient& out) {
    if (f.sharp_det <= 1e-12f * f.det) return;
    const float half = 0.5f * grad * f.compensation, sharp = 1.0f / f.sharp_det, soft = 1.0f / f.det;
    out.xx += half * (f.sharp_yy * sharp - f.yy * soft);
    out.yy += half * (f.sharp_xx * sharp - f.xx * soft);
    out.xy += 2.0f * half * f.xy * (soft - sharp);
}

// d(R) -> d(quaternion), through R(q) and then through q / |q|.
__device__ __forceinline__ void quaternion_backward(const Quaternion& q, const Mat3& g, float* grad_quat) {
    const float w = q.w, x = q.x, y = q.y, z = q.z;
    const float dw = 2 * (x * (g.m[2][1] - g.m[1][2]) + y * (g.m[0][2] - g.m[2][0]) + z * (g.m[1][0] - g.m[0][1]));
    const float dx = 2 * (y * (g.m[0][1] + g.m[1][0]) + z * (g.m[0][2] + g.m[2][0]) - 2 * x * (g.m[1][1] + g.m[2][2]) +
                          w * (g.m[2][1] - g.m[1][2]));
    const float dy = 2 * (x * (g.m[0][1] + g.m[1][0]) + z * (g.m[1][2] + g.m[2][1]) - 2 * y * (g.m[0][0] + g.m[2][2]) +
                          w * (g.m[0][2] - g.m[2][0]));
    const float dz = 2 * (x * (g.m[0][2] + g.m[2][0]) + y * (g.m[1][2] + g.m[2][1]) - 2 * z * (g.m[0][0] + g.m[1][1]) +
                          w * (g.m[1][0] - g.m[0][1]));
    const float along = dw * w + dx * x + dy * y + dz * z;
    grad_quat[0] = q.inverse_norm * (dw - along * w);
    grad_quat[1] = q.inverse_norm * (dx - along * x);
    grad_quat[2] = q.inverse_norm * (dy - along * y);
    grad_quat[3] = q.inverse_norm * (dz - along * z);
}

// d(U) -> gradients of scale and quaternion (both written) and rows of d(J W) (returned).
__device__ __forceinline__ void shape_backward(const Footprint& f, const Vec3& du0, const Vec3& du1, float* grad_scale,
                                               float* grad_quat, Vec3* dv0, Vec3* dv1) {
    const float v0[3] = {f.v0.x, f.v0.y, f.v0.z}, v1[3] = {f.v1.x, f.v1.y, f.v1.z};
    const float d0[3] = {du0.x, du0.y, du0.z}, d1[3] = {du1.x, du1.y, du1.z};
    const float scale[3] = {f.scale.x, f.scale.y, f.scale.z};
    Mat3 grad_rotation;
    float row0[3] = {0, 0, 0}, row1[3] = {0, 0, 0}, ds[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++) {
            const float r = f.orientation.m[i][k], dm = v0[i] * d0[k] + v1[i] * d1[k];  // d(R S)[i][k]
            ds[k] += dm * r;
            grad_rotation.m[i][k] = dm * scale[k];
            row0[i] += d0[k] * r * scale[k];
            row1[i] += d1[k] * r * scale[k];
        }
    }
    for (int k = 0; k < 3; k++) grad_scale[k] = ds[k];
    quaternion_backward(f.quat, grad_rotation, grad_quat);
    *dv0 = {row0[0], row0[1], row0[2]};
    *dv1 = {row1[0], row1[1], row1[2]};
}

// Gradients of one visible Gaussian; camera_grad[16] is its share of the camera's.
__device__ __forceinline__ void gaussian_backward(const SdWorldGaussians& in, const SdProjectedGradients& grads,
                                                  const SdWorldGradients& out, const Camera& camera, int i,
                                                  float* camera_grad) {
    const Footprint f = footprint(in, camera, i);
    const float grad_opacity = value_or_zero(grads.opacities, i);
    out.opacities[i] = grad_opacity * f.compensation;
    CovarianceGradient cov =
        conic_backward(f, value_or_zero(grads.conics, 3 * i), value_or_zero(grads.conics, 3 * i + 1),
                       value_or_zero(grads.conics, 3 * i + 2));
    if (in.antialiased) compensation_backward(f, grad_opacity * in.opacities[i], cov);
    const Vec3 du0 = mix(2.0f * cov.xx, f.u0, cov.xy, f.u1), du1 = mix(cov.xy, f.u0, 2.0f * cov.yy, f.u1);
    Vec3 dv0, dv1;
    shape_backward(f, du0, du1, out.scales + 3 * i, out.quats + 4 * i, &dv0, &dv1);

    // x2d = fx rx + cx and J = (fx / z) [1, 0, -ratio_x] with rx = x / z, ratio_x = clamp(rx); y alike. Orthographic
    // cameras have no z in either.
    const bool flat = camera.orthographic;
    const float iz = f.inverse_z, rx = f.mean_cam.x * iz, ry = f.mean_cam.y * iz;
    const Vec3 dj0 = times(camera.rotation, dv0), dj1 = times(camera.rotation, dv1);
    const float gx = value_or_zero(grads.means2d, 2 * i), gy = value_or_zero(grads.means2d, 2 * i + 1);
    const float drx = camera.fx * (gx - (flat || f.clamped_x ? 0.0f : dj0.z * iz)),
                dry = camera.fy * (gy - (flat || f.clamped_y ? 0.0f : dj1.z * iz));
    const float along0 = dot(f.j0, dj0), along1 = dot(f.j1, dj1);  // J is proportional to fx / z, fy / z
    const float by_depth = flat ? 0.0f : iz * (drx * rx + dry * ry + along0 + along1);
    const float dp[3] = {drx * iz, dry * iz, value_or_zero(grads.depths, i) - by_depth};
    const Vec3 dm = transposed_times(camera.rotation, {dp[0], dp[1], dp[2]});
    out.means[3 * i] = dm.x;
    out.means[3 * i + 1] = dm.y;
    out.means[3 * i + 2] = dm.z;

    const float dv[2][3] = {{dv0.x, dv0.y, dv0.z}, {dv1.x, dv1.y, dv1.z}};
    const float j[2][3] = {{f.j0.x, f.j0.y, f.j0.z}, {f.j1.x, f.j1.y, f.j1.z}};
    for (int row = 0; row < 3; row++) {
        for (int col = 0; col < 3; col++) {
            camera_grad[row * 4 + col] =
                dp[row] * in.means[3 * i + col] + j[0][row] * dv[0][col] + j[1][row] * dv[1][col];
        }
        camera_grad[row * 4 + 3] = dp[row];
    }
    camera_grad[12] = gx * rx + along0 / camera.fx;
    camera_grad[13] = gy * ry + along1 / camera.fy;
    camera_grad[14] = gx;
    camera_grad[15] = gy;
}

__device__ __forceinline__ void write_zero_gradients(const SdWorldGradients& out, int i) {
    for (int k = 0; k < 3; k++) out.means[3 * i + k] = out.scales[3 * i + k] = 0.0f;
    for (int k = 0; k < 4; k++) out.quats[4 * i + k] = 0.0f;
    out.opacities[i] = 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    project_backward_kernel(SdWorldGaussians in, SdProjectedGradients grads, SdWorldGradients out) {
    SD_SHARED(BlockSums, sums);
    const int i = blockIdx.x * kThreads + threadIdx.x;
    float camera_grad[kCameraValues] = {};
    if (i < in.count) {
        if (grads.extents[2 * i] > 0.0f) {
            gaussian_backward(in, grads, out, load_camera(in), i, camera_grad);
        } else {
            write_zero_gradients(out, i);
        }
    }
    if (!out.partials) return;
    for (int k = 0; k < kCameraValues; k++) {
        const float sum = block_sum(camera_grad[k], sums, threadIdx.x, kThreads);
        if (threadIdx.x == 0) out.partials[blockIdx.x * kCameraValues + k] = sum;
    }
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_project_blocks(int count) { return ceil_div(count, kThreads); }

extern "C" int sd_cuda_project(const SdWorldGaussians* gaussians, const SdProjected* out, void* stream) {
    if (gaussians->count == 0) return 0;
    SD_LAUNCH(project_kernel, dim3(sd_cuda_project_blocks(gaussians->count)), dim3(kThreads), 0, stream, *gaussians,
              *out);
    return last_error();
}

extern "C" int sd_cuda_project_backward(const SdWorldGaussians* gaussians, const SdProjectedGradients* grads,
                                        const SdWorldGradients* out, void* stream) {
    const int blocks = sd_cuda_project_blocks(gaussians->count);
    if (blocks == 0) return out->camera ? fill_bytes(out->camera, 0, kCameraValues * sizeof(float), stream) : 0;
    SD_LAUNCH(project_backward_kernel, dim3(blocks), dim3(kThreads), 0, stream, *gaussians, *grads, *out);
    if (const int error = last_error()) return error;
    if (!out->camera) return 0;
    return sum_columns(out->partials, blocks, kCameraValues, out->camera, stream);
}
