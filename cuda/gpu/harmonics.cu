// View-dependent colours: spherical harmonics up to degree 3, forward and backward.
//
//   color = max(0, 1/2 + sum_k basis_k(d) c_k),  d = (mean - camera centre) / |mean - camera centre|
//
// Idea    A Gaussian's 48 coefficients lie side by side, but a thread wants them one at a time. The block copies its 64
//         rows through shared memory, so that global reads and writes are contiguous; the backward turns the rows into
//         their own gradients in place. Rows of Gaussians that are not drawn are not read.
// Unit    one thread a Gaussian. The gradient of the camera centre is summed per block, then in a fixed order.
// Bytes   at degree 3: 212 read + 12 written a Gaussian forward, 236 read + 204 written backward. Bound: memory.
// Source  3DGS section 6; basis and signs of scene_distill/core/spherical_harmonics.py.
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 64;
constexpr int kBases = 16;
constexpr int kPitch = 3 * kBases + 1;  // odd: the lanes of a warp meet 32 banks

constexpr float k0 = 0.28209479f, k1 = 0.48860251f;
constexpr float k2xy = 1.0925484f, k2zz = 0.31539157f, k2xx = 0.54627422f;
constexpr float k3xxx = 0.59004359f, k3xyz = 2.8906114f, k3xzz = 0.45704580f, k3zzz = 0.37317633f, k3zxx = 1.4453057f;

struct HarmonicsShared {
    float row[kThreads][kPitch];
    bool seen[kThreads];
    BlockSums sums;
};

struct UnitDirection {
    float x, y, z, inverse_distance;
};

__device__ __forceinline__ UnitDirection direction(const SdHarmonics& in, int i) {
    const float x = in.means[3 * i] - in.camera_center[0], y = in.means[3 * i + 1] - in.camera_center[1],
                z = in.means[3 * i + 2] - in.camera_center[2];
    const float inverse = 1.0f / fmaxf(sqrtf(x * x + y * y + z * z), 1e-12f);
    return {x * inverse, y * inverse, z * inverse, inverse};
}

// b[k] of all degrees up to `degree`; the others stay as they are.
__device__ __forceinline__ void basis(int degree, const UnitDirection& d, float (&b)[kBases]) {
    const float x = d.x, y = d.y, z = d.z;
    b[0] = k0;
    if (degree < 1) return;
    b[1] = -k1 * y, b[2] = k1 * z, b[3] = -k1 * x;
    if (degree < 2) return;
    const float xx = x * x, yy = y * y, zz = z * z, xy = x * y;
    b[4] = k2xy * xy, b[5] = -k2xy * y * z, b[6] = k2zz * (2 * zz - xx - yy), b[7] = -k2xy * x * z;
    b[8] = k2xx * (xx - yy);
    if (degree < 3) return;
    const float axial = 4 * zz - xx - yy;
    b[9] = -k3xxx * y * (3 * xx - yy), b[10] = k3xyz * xy * z, b[11] = -k3xzz * y * axial;
    b[12] = k3zzz * z * (2 * zz - 3 * (xx + yy)), b[13] = -k3xzz * x * axial, b[14] = k3zxx * z * (xx - yy);
    b[15] = -k3xxx * x * (xx - 3 * yy);
}

// Gradient of sum_k basis_k p_k with respect to (x, y, z).
__device__ __forceinline__ void basis_backward(int degree, const UnitDirection& d, const float (&p)[kBases],
                                               float (&v)[3]) {
    const float x = d.x, y = d.y, z = d.z;
    if (degree < 1) return;
    v[0] = -k1 * p[3], v[1] = -k1 * p[1], v[2] = k1 * p[2];
    if (degree < 2) return;
    v[0] += k2xy * (y * p[4] - z * p[7]) + 2 * x * (k2xx * p[8] - k2zz * p[6]);
    v[1] += k2xy * (x * p[4] - z * p[5]) - 2 * y * (k2xx * p[8] + k2zz * p[6]);
    v[2] += 4 * k2zz * z * p[6] - k2xy * (y * p[5] + x * p[7]);
    if (degree < 3) return;
    const float xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
    v[0] += k3xyz * yz * p[10] - 6 * k3xxx * xy * p[9] + 2 * k3xzz * xy * p[11] - 6 * k3zzz * xz * p[12] -
            k3xzz * (4 * zz - 3 * xx - yy) * p[13] + 2 * k3zxx * xz * p[14] - 3 * k3xxx * (xx - yy) * p[15];
    v[1] += k3xyz * xz * p[10] - 3 * k3xxx * (xx - yy) * p[9] - k3xzz * (4 * zz - xx - 3 * yy) * p[11] -
            6 * k3zzz * yz * p[12] + 2 * k3xzz * xy * p[13] - 2 * k3zxx * yz * p[14] + 6 * k3xxx * xy * p[15];
    v[2] += k3xyz * xy * p[10] - 8 * k3xzz * (yz * p[11] + xz * p[13]) + k3zzz * (6 * zz - 3 * (xx + yy)) * p[12] +
            k3zxx * (xx - yy) * p[14];
}

__host__ __device__ constexpr int basis_count(int degree) { return (degree + 1) * (degree + 1); }

// The coefficients in use of the block's Gaussians, into shared memory. Ends at a barrier.
__device__ __forceinline__ void load_rows(HarmonicsShared& shared, const SdHarmonics& in, int first, int count) {
    const int i = first + threadIdx.x, used = 3 * basis_count(in.degree);
    shared.seen[threadIdx.x] = int(threadIdx.x) < count && (!in.extents || in.extents[2 * i] > 0.0f);
    __syncthreads();
    for (int e = threadIdx.x; e < count * used; e += kThreads) {
        const int row = e / used, column = e % used;
        if (shared.seen[row])
            shared.row[row][column] = in.coefficients[size_t(first + row) * 3 * in.bases + column];
    }
    __syncthreads();
}

__global__ void __launch_bounds__(kThreads) harmonics_kernel(SdHarmonics in, float* __restrict__ colors) {
    SD_SHARED(HarmonicsShared, shared);
    const int first = blockIdx.x * kThreads, count = min(kThreads, in.count - first), i = first + threadIdx.x;
    load_rows(shared, in, first, count);
    if (i >= in.count) return;
    float color[3] = {};
    if (shared.seen[threadIdx.x]) {
        float b[kBases];
        basis(in.degree, direction(in, i), b);
        for (int c = 0; c < 3; c++) color[c] = 0.5f;
#pragma unroll
        for (int k = 0; k < kBases; k++) {
            if (k >= basis_count(in.degree)) break;
            for (int c = 0; c < 3; c++) color[c] = fmaf(b[k], shared.row[threadIdx.x][3 * k + c], color[c]);
        }
    }
    for (int c = 0; c < 3; c++) colors[3 * i + c] = fmaxf(color[c], 0.0f);
}

// Turns one row of coefficients into its gradient; `v` becomes the gradient of the mean.
__device__ __forceinline__ void row_backward(const SdHarmonics& in, const float* colors, const float* grad_colors,
                                             int i, float* row, float (&v)[3]) {
    float grad[3], b[kBases], p[kBases];
    for (int c = 0; c < 3; c++) grad[c] = colors[3 * i + c] > 0.0f ? grad_colors[3 * i + c] : 0.0f;
    const UnitDirection d = direction(in, i);
    basis(in.degree, d, b);
#pragma unroll
    for (int k = 0; k < kBases; k++) {
        if (k >= basis_count(in.degree)) break;
        p[k] = row[3 * k] * grad[0] + row[3 * k + 1] * grad[1] + row[3 * k + 2] * grad[2];
        for (int c = 0; c < 3; c++) row[3 * k + c] = b[k] * grad[c];
    }
    basis_backward(in.degree, d, p, v);
    // d = r / |r|: only the part across d moves it.
    const float along = v[0] * d.x + v[1] * d.y + v[2] * d.z;
    v[0] = (v[0] - along * d.x) * d.inverse_distance;
    v[1] = (v[1] - along * d.y) * d.inverse_distance;
    v[2] = (v[2] - along * d.z) * d.inverse_distance;
}

__global__ void __launch_bounds__(kThreads)
    harmonics_backward_kernel(SdHarmonics in, const float* __restrict__ colors, const float* __restrict__ grad_colors,
                              SdHarmonicsGradients out) {
    SD_SHARED(HarmonicsShared, shared);
    const int first = blockIdx.x * kThreads, count = min(kThreads, in.count - first), i = first + threadIdx.x;
    load_rows(shared, in, first, count);
    float v[3] = {};
    if (shared.seen[threadIdx.x]) row_backward(in, colors, grad_colors, i, shared.row[threadIdx.x], v);
    __syncthreads();
    const int used = 3 * basis_count(in.degree), stored = 3 * in.bases;
    for (int e = threadIdx.x; e < count * stored; e += kThreads) {
        const int row = e / stored, column = e % stored;
        const bool moves = shared.seen[row] && column < used;
        out.coefficients[size_t(first) * stored + e] = moves ? shared.row[row][column] : 0.0f;
    }
    for (int c = 0; c < 3 && i < in.count; c++) out.means[3 * i + c] = v[c];
    if (!out.camera_center) return;
    for (int c = 0; c < 3; c++) {
        const float sum = block_sum(-v[c], shared.sums, threadIdx.x, kThreads);
        if (threadIdx.x == 0) out.partials[3 * blockIdx.x + c] = sum;
    }
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_harmonics_blocks(int count) { return ceil_div(count, kThreads); }

extern "C" int sd_cuda_spherical_harmonics(const SdHarmonics* harmonics, float* colors, void* stream) {
    const int blocks = sd_cuda_harmonics_blocks(harmonics->count);
    if (blocks == 0) return 0;
    SD_LAUNCH(harmonics_kernel, dim3(blocks), dim3(kThreads), 0, stream, *harmonics, colors);
    return last_error();
}

extern "C" int sd_cuda_spherical_harmonics_backward(const SdHarmonics* harmonics, const float* colors,
                                                    const float* grad_colors, const SdHarmonicsGradients* out,
                                                    void* stream) {
    const int blocks = sd_cuda_harmonics_blocks(harmonics->count);
    if (blocks == 0) return out->camera_center ? fill_bytes(out->camera_center, 0, 3 * sizeof(float), stream) : 0;
    SD_LAUNCH(harmonics_backward_kernel, dim3(blocks), dim3(kThreads), 0, stream, *harmonics, colors, grad_colors,
              *out);
    if (const int error = last_error()) return error;
    if (!out->camera_center) return 0;
    return sum_columns(out->partials, blocks, 3, out->camera_center, stream);
}
