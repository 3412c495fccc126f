// View-dependent colours: spherical harmonics up to degree 3 (3DGS section 6), forward and backward.
//
//   color = max(0, 1/2 + sum_k basis_k(d) c_k),   d = (mean - camera centre) / |mean - camera centre|
// Where the clamp is active no gradient passes. Basis and signs are those of core/spherical_harmonics.py.
//
// Work unit: one vector of Gaussians, chunks of 1024 over the pool; coefficient rows are turned into columns in registers.
// Bytes at degree 3: 204 read and 12 written per visible Gaussian forward, 216 read and 204 written backward. Bound: memory.
// Rows of Gaussians that are not drawn are not read; their colours and gradients are zero.
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int64_t kHarmonicsChunk = 1024;
constexpr int kBases = 16;

struct HarmonicsLanes {
    static constexpr float c0 = 0.28209479f, c1 = 0.48860251f, c2xy = 1.0925484f, c2zz = 0.31539157f, c2xx = 0.54627422f;
    static constexpr float c3xxx = 0.59004359f, c3xyz = 2.8906114f, c3xzz = 0.45704580f, c3zzz = 0.37317633f, c3zxx = 1.4453057f;
    Floats x, y, z, inverse_distance;
    Mask seen;

    HarmonicsLanes(const sd_harmonics& in, int64_t i, int n) : seen(first_lanes(n)) {
        if (in.extents) seen = seen & (load_strided(in.extents + 2 * i, 2, n) > 0.0f);
        Floats mean[3];
        for (int k = 0; k < 3; ++k) mean[k] = load_strided(in.means + 3 * i + k, 3, n);
        look(mean, in.camera_center);
    }
    HarmonicsLanes(const Floats (&mean)[3], const float* camera_center, Mask drawn) : seen(drawn) { look(mean, camera_center); }

    void look(const Floats (&mean)[3], const float* camera_center) {
        x = mean[0] - camera_center[0], y = mean[1] - camera_center[1], z = mean[2] - camera_center[2];
        inverse_distance = 1.0f / max(sqrt(fma(x, x, fma(y, y, z * z))), 1e-12f);
        x = x * inverse_distance, y = y * inverse_distance, z = z * inverse_distance;
    }

    void basis(int degree, Floats* b) const {
        b[0] = c0;
        if (degree < 1) return;
        b[1] = y * -c1, b[2] = z * c1, b[3] = x * -c1;
        if (degree < 2) return;
        Floats xx = x * x, yy = y * y, zz = z * z, xy = x * y;
        b[4] = xy * c2xy, b[5] = y * z * -c2xy, b[6] = (2.0f * zz - xx - yy) * c2zz, b[7] = x * z * -c2xy, b[8] = (xx - yy) * c2xx;
        if (degree < 3) return;
        Floats axial = 4.0f * zz - xx - yy;
        b[9] = y * (3.0f * xx - yy) * -c3xxx, b[10] = xy * z * c3xyz, b[11] = y * axial * -c3xzz;
        b[12] = z * (2.0f * zz - 3.0f * (xx + yy)) * c3zzz, b[13] = x * axial * -c3xzz, b[14] = z * (xx - yy) * c3zxx;
        b[15] = x * (xx - 3.0f * yy) * -c3xxx;
    }

    // gradient of sum_k basis_k p_k with respect to the unit direction
    void direction_gradient(int degree, const Floats* p, Floats (&v)[3]) const {
        v[0] = v[1] = v[2] = 0.0f;
        if (degree < 1) return;
        v[0] = p[3] * -c1, v[1] = p[1] * -c1, v[2] = p[2] * c1;
        if (degree < 2) return;
        v[0] = v[0] + c2xy * (y * p[4] - z * p[7]) - (2.0f * c2zz) * x * p[6] + (2.0f * c2xx) * x * p[8];
        v[1] = v[1] + c2xy * (x * p[4] - z * p[5]) - (2.0f * c2zz) * y * p[6] - (2.0f * c2xx) * y * p[8];
        v[2] = v[2] - c2xy * (y * p[5] + x * p[7]) + (4.0f * c2zz) * z * p[6];
        if (degree < 3) return;
        Floats xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
        v[0] = v[0] - (6.0f * c3xxx) * xy * p[9] + c3xyz * yz * p[10] + (2.0f * c3xzz) * xy * p[11] - (6.0f * c3zzz) * xz * p[12] -
               c3xzz * (4.0f * zz - 3.0f * xx - yy) * p[13] + (2.0f * c3zxx) * xz * p[14] - (3.0f * c3xxx) * (xx - yy) * p[15];
        v[1] = v[1] - (3.0f * c3xxx) * (xx - yy) * p[9] + c3xyz * xz * p[10] - c3xzz * (4.0f * zz - xx - 3.0f * yy) * p[11] -
               (6.0f * c3zzz) * yz * p[12] + (2.0f * c3xzz) * xy * p[13] - (2.0f * c3zxx) * yz * p[14] + (6.0f * c3xxx) * xy * p[15];
        v[2] = v[2] + c3xyz * xy * p[10] - (8.0f * c3xzz) * (yz * p[11] + xz * p[13]) +
               c3zzz * (6.0f * zz - 3.0f * (xx + yy)) * p[12] + c3zxx * (xx - yy) * p[14];
    }
};

// Rows of coefficients of the Gaussians i .. i + n - 1 as columns [K * 3]; those not seen are zero.
inline void load_coefficients(const sd_harmonics& in, int64_t i, int n, Mask seen, int columns, Floats* out) {
    static const float nothing[3 * kBases] = {};
    const float* rows[kLanes];
    const int64_t row = 3 * in.bases, ahead = (i + 2 * kLanes) * row, end = least((i + 3 * kLanes) * row, in.count * row);
    for (int64_t at = ahead; at < end; at += 16) prefetch(in.coefficients + at);  // the processor does not foresee 16 streams
    for (int k = 0; k < n; ++k) rows[k] = lane(seen, k) ? in.coefficients + (i + k) * 3 * in.bases : nothing;
    load_columns(rows, n, columns, out);
}

// Colours of the Gaussians i .. i + n - 1; zero where they are not seen.
inline void harmonics_lanes(const sd_harmonics& in, const HarmonicsLanes& at, int64_t i, int n, float* colors) {
    const int active = (in.degree + 1) * (in.degree + 1);
    Floats color[3] = {0.0f, 0.0f, 0.0f};
    if (any(at.seen)) {
        Floats c[3 * kBases], b[kBases];
        load_coefficients(in, i, n, at.seen, 3 * active, c);
        at.basis(in.degree, b);
        for (auto& value : color) value = 0.5f;
        for (int k = 0; k < active; ++k)
            for (int j = 0; j < 3; ++j) color[j] = fma(b[k], c[3 * k + j], color[j]);
    }
    for (int j = 0; j < 3; ++j) store_strided(colors + 3 * i + j, 3, zero_unless(at.seen, max(color[j], 0.0f)), n);
}

inline void harmonics_forward(const sd_harmonics& in, float* colors) {
    parallel_chunks(in.count, kHarmonicsChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            harmonics_lanes(in, HarmonicsLanes(in, i, n), i, n, colors);
        }
    });
}

// store_columns of rows that nobody reads soon: whole cache lines go past the caches, which spares reading them first.
inline void stream_columns(float* const* rows, int n, int columns, const Floats* in) {
#if defined(__AVX512F__)
    bool lines = columns % 16 == 0;
    for (int i = 0; i < n; ++i) lines = lines && reinterpret_cast<uintptr_t>(rows[i]) % 64 == 0;
    for (int c = 0; lines && c < columns; c += 16) {
        __m512 block[16];
        for (int k = 0; k < 16; ++k) block[k] = in[c + k].v;
        detail::transpose16(block);
        for (int i = 0; i < n; ++i) _mm512_stream_ps(rows[i] + c, block[i]);
    }
    if (lines) return;
#endif
    store_columns(rows, n, columns, in);
}

// Writes the gradient rows of the coefficients and returns that of the means.
inline void harmonics_lanes_backward(const sd_harmonics& in, const HarmonicsLanes& at, int64_t i, int n, const float* colors,
                                     const float* v_colors, float* v_coefficients, Floats (&v)[3]) {
    const int active = (in.degree + 1) * (in.degree + 1), row = 3 * in.bases;
    for (auto& value : v) value = 0.0f;
    if (!any(at.seen)) {
        __builtin_memset(v_coefficients + i * row, 0, sizeof(float) * static_cast<size_t>(n * row));
        return;
    }
    Floats v_color[3], c[3 * kBases], b[kBases], p[kBases];
    for (int j = 0; j < 3; ++j)
        v_color[j] = zero_unless(at.seen & (load_strided(colors + 3 * i + j, 3, n) > 0.0f),
                                 load_strided(v_colors + 3 * i + j, 3, n));
    load_coefficients(in, i, n, at.seen, 3 * active, c);
    at.basis(in.degree, b);
    for (int k = 0; k < active; ++k) {
        p[k] = fma(c[3 * k], v_color[0], fma(c[3 * k + 1], v_color[1], c[3 * k + 2] * v_color[2]));
        for (int j = 0; j < 3; ++j) c[3 * k + j] = b[k] * v_color[j];
    }
    float* rows[kLanes];
    for (int k = 0; k < n; ++k) rows[k] = v_coefficients + (i + k) * row;
    stream_columns(rows, n, 3 * active, c);
    for (int k = 0; k < n && active < in.bases; ++k)
        __builtin_memset(rows[k] + 3 * active, 0, sizeof(float) * static_cast<size_t>(row - 3 * active));
    at.direction_gradient(in.degree, p, v);
    Floats along = fma(v[0], at.x, fma(v[1], at.y, v[2] * at.z));
    v[0] = fnma(along, at.x, v[0]), v[1] = fnma(along, at.y, v[1]), v[2] = fnma(along, at.z, v[2]);
    for (auto& value : v) value = zero_unless(at.seen, value * at.inverse_distance);
}

struct HarmonicsGradient {
    float *means, *coefficients;
};

inline void harmonics_backward(const sd_harmonics& in, const float* colors, const float* v_colors, const HarmonicsGradient& out,
                               float* v_camera_center) {
    Scratch scratch;
    float(*partial)[3] = scratch.array<float[3]>(0, in.count / kHarmonicsChunk + 1);
    parallel_chunks(in.count, kHarmonicsChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        Floats total[3] = {0.0f, 0.0f, 0.0f}, v[3];
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            harmonics_lanes_backward(in, HarmonicsLanes(in, i, n), i, n, colors, v_colors, out.coefficients, v);
            for (int j = 0; j < 3; ++j) store_strided(out.means + 3 * i + j, 3, v[j], n), total[j] = total[j] + v[j];
        }
        for (int j = 0; j < 3; ++j) partial[chunk][j] = sum(total[j]);
    });
    if (!v_camera_center) return;
    double totals[3] = {};
    for (int64_t chunk = 0; chunk * kHarmonicsChunk < in.count; ++chunk)
        for (int j = 0; j < 3; ++j) totals[j] -= partial[chunk][j];
    for (int j = 0; j < 3; ++j) v_camera_center[j] = static_cast<float>(totals[j]);
}

}  // namespace sd::SD_ISA
