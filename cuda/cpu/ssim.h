// L1 and SSIM of two images and the gradient of SSIM, fused (Wang et al. 2004; 11x11 Gaussian window, sigma 1.5, zero padding).
//
// Work unit: a panel of 128 rows of 224 floats. Its 11 horizontally blurred rows stay near and its maps of derivatives, with
// the border of 5 pixels that the second blur needs, in L2, so that big images cost no more memory traffic than reading them.
// The window is separable, and channels are interleaved, so a tap is a shift by 3 floats. SSIM needs four blurred maps, x, y,
// x^2 + y^2 and x y; its gradient blurs three maps of derivatives once more (the window is symmetric):
//   dSSIM/dx = blur(dS/dmu_x) + 2 x blur(dS/dE[x^2 + y^2]) + y blur(dS/dE[x y]).
// Bytes: about 11 read and 4 written per float. Bound: about 110 vector operations per kLanes floats.
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

constexpr int kReach = 5, kTaps = 2 * kReach + 1, kColors = 3;
constexpr int kBorder = kReach * kColors;
constexpr int kPanelFloats = 224, kPanelRows = 128;            // of the image, per work item
constexpr int kPanel = 256, kMapRows = kPanelRows + 2 * kReach;  // with the border; kPanel is a multiple of kLanes
constexpr float kSsimC1 = 0.01f * 0.01f, kSsimC2 = 0.03f * 0.03f;

// Normalised weights exp(-d^2 / (2 1.5^2)) for d = 5 .. 0
constexpr float kWindow[kReach + 1] = {0.0010283801f, 0.0075987581f, 0.0360007721f, 0.1093606895f, 0.2130055377f, 0.2660117249f};

struct ImageShape {
    int rows, floats;  // floats = 3 width
    int panel_rows() const { return (rows + kPanelRows - 1) / kPanelRows; }
    int panel_columns() const { return (floats + kPanelFloats - 1) / kPanelFloats; }
};

struct Panel {
    int row0, row1, column0, column1;
    static Panel of(const ImageShape& shape, int64_t item) {
        int row = static_cast<int>(item / shape.panel_columns()) * kPanelRows;
        int column = static_cast<int>(item % shape.panel_columns()) * kPanelFloats;
        return {row, least(shape.rows, row + kPanelRows), column, least(shape.floats, column + kPanelFloats)};
    }
    Panel with_border(const ImageShape& shape) const {
        return {most(0, row0 - kReach), least(shape.rows, row1 + kReach), most(0, column0 - kBorder),
                least(shape.floats, column1 + kBorder)};
    }
};

template <int kMaps> struct BlurRows {
    alignas(64) float raw[kMaps][kPanel + 2 * kBorder + kLanes];
    alignas(64) float ring[kTaps][kMaps][kPanel];
};

template <int kMaps> inline void blur_row(BlurRows<kMaps>& rows, int slot) {
    for (int m = 0; m < kMaps; ++m)
        for (int c = 0; c < kPanel; c += kLanes) {
            const float* at = rows.raw[m] + c;
            Floats total = load(at + kBorder) * kWindow[kReach];
            for (int k = 0; k < kReach; ++k)
                total = fma(load(at + k * kColors) + load(at + (2 * kReach - k) * kColors), kWindow[k], total);
            store(rows.ring[slot][m] + c, total);
        }
}

// Blurs kMaps maps over one panel. produce(row, column, n) -> kMaps values at n columns of the image (already inside);
// finish(row, column, n, blurred) receives the result.
template <int kMaps, class Produce, class Finish>
inline void blur_panel(const ImageShape& shape, const Panel& p, Produce&& produce, Finish&& finish) {
    BlurRows<kMaps> rows;
    const int left = most(0, p.column0 - kBorder), right = least(shape.floats, p.column1 + kBorder);
    __builtin_memset(&rows, 0, sizeof rows);
    for (int row = p.row0 - kReach; row < p.row1 + kReach; ++row) {
        int slot = (row + kTaps) % kTaps;
        if (row < 0 || row >= shape.rows) {
            __builtin_memset(rows.ring[slot], 0, sizeof rows.ring[slot]);
        } else {
            for (int c = left; c < right; c += kLanes) {
                Floats values[kMaps];
                int n = least(kLanes, right - c);
                produce(row, c, n, values);
                for (int m = 0; m < kMaps; ++m) store(rows.raw[m] + c - p.column0 + kBorder, values[m]);
            }
            blur_row<kMaps>(rows, slot);
        }
        int out = row - kReach;
        if (out < p.row0) continue;
        const float* at[kTaps];
        for (int k = 0; k < kTaps; ++k) at[k] = rows.ring[(out - kReach + k + kTaps) % kTaps][0];
        for (int c = p.column0; c < p.column1; c += kLanes) {
            Floats blurred[kMaps];
            for (int m = 0; m < kMaps; ++m) {
                int offset = m * kPanel + c - p.column0;
                blurred[m] = load(at[kReach] + offset) * kWindow[kReach];
                for (int k = 0; k < kReach; ++k)
                    blurred[m] = fma(load(at[k] + offset) + load(at[kTaps - 1 - k] + offset), kWindow[k], blurred[m]);
            }
            finish(out, c, least(kLanes, p.column1 - c), blurred);
        }
    }
}

struct SsimDerivative {
    Floats ssim, by_mean, by_square, by_product;
};

// S = n1 n2 / (d1 d2) of the blurred x, y, x^2 + y^2, x y, and its derivatives by the first, third and fourth.
inline SsimDerivative ssim_of(const Floats (&e)[4]) {
    Floats mx = e[0], my = e[1], cross = mx * my, squares = fma(mx, mx, my * my);
    Floats n1 = fma(2.0f, cross, kSsimC1), n2 = fma(2.0f, e[3] - cross, kSsimC2);
    Floats d1 = squares + kSsimC1, d2 = e[2] - squares + kSsimC2;
    Floats inverse1 = 1.0f / d1, inverse2 = 1.0f / d2, inverse = inverse1 * inverse2, s = n1 * n2 * inverse;
    Floats by_mean = 2.0f * my * (n2 - n1) * inverse + 2.0f * mx * s * (inverse2 - inverse1);
    return {s, by_mean, -s * inverse2, 2.0f * n1 * inverse};
}

struct ImagePair {
    const float *image, *target;
    ImageShape shape;
    int64_t at(int row, int column) const { return int64_t(row) * shape.floats + column; }
};

struct DerivativeMaps {  // of one panel with its border
    alignas(64) float map[3][kMapRows][kPanel + kLanes];
};

// Sums of |x - y| and SSIM over the panel; fills the maps of derivatives, border included, when they are given.
inline void measure_panel(const ImagePair& pair, const Panel& inner, DerivativeMaps* maps, float (&sums)[2]) {
    const Panel outer = maps ? inner.with_border(pair.shape) : inner;
    Floats l1 = 0.0f, ssim = 0.0f;
    const float width = static_cast<float>(inner.column1 - inner.column0);
    blur_panel<4>(
        pair.shape, outer,
        [&](int row, int c, int n, Floats(&v)[4]) {
            int64_t at = pair.at(row, c);
            v[0] = load_first(pair.image + at, n), v[1] = load_first(pair.target + at, n);
            v[2] = fma(v[0], v[0], v[1] * v[1]), v[3] = v[0] * v[1];
        },
        [&](int row, int c, int n, const Floats(&blurred)[4]) {
            SsimDerivative d = ssim_of(blurred);
            if (row >= inner.row0 && row < inner.row1) {
                int64_t at = pair.at(row, c);
                Floats column = iota() + static_cast<float>(c - inner.column0);
                Mask counts = (column >= 0.0f) & (column < width) & first_lanes(n);
                ssim = ssim + zero_unless(counts, d.ssim);
                l1 = l1 + zero_unless(counts, abs(load_first(pair.image + at, n) - load_first(pair.target + at, n)));
            }
            if (!maps) return;
            int r = row - outer.row0, k = c - outer.column0;
            store(maps->map[0][r] + k, d.by_mean), store(maps->map[1][r] + k, d.by_square);
            store(maps->map[2][r] + k, d.by_product);
        });
    sums[0] = sum(l1), sums[1] = sum(ssim);
}

inline void pull_panel(const ImagePair& pair, const Panel& inner, const DerivativeMaps& maps, float* gradient) {
    const Panel outer = inner.with_border(pair.shape);
    const float scale = 1.0f / (static_cast<float>(pair.shape.rows) * static_cast<float>(pair.shape.floats));
    blur_panel<3>(
        pair.shape, inner,
        [&](int row, int c, int n, Floats(&v)[3]) {
            for (int m = 0; m < 3; ++m) v[m] = load_first(maps.map[m][row - outer.row0] + c - outer.column0, n);
        },
        [&](int row, int c, int n, const Floats(&blurred)[3]) {
            int64_t at = pair.at(row, c);
            Floats x = load_first(pair.image + at, n), y = load_first(pair.target + at, n);
            store_first(gradient + at, fma(2.0f * x, blurred[1], fma(y, blurred[2], blurred[0])) * scale, n);
        });
}

inline void l1_ssim_forward(const float* image, const float* target, int width, int height, float* l1, float* ssim,
                            float* gradient) {
    ImagePair pair{image, target, {height, width * kColors}};
    int64_t items = int64_t(pair.shape.panel_rows()) * pair.shape.panel_columns();
    Scratch scratch;
    float(*partial)[2] = scratch.array<float[2]>(0, items);
    DerivativeMaps* maps = gradient ? scratch.array<DerivativeMaps>(1, thread_count()) : nullptr;
    parallel_items(items, [&](int64_t item, int worker) {
        Panel panel = Panel::of(pair.shape, item);
        measure_panel(pair, panel, maps ? &maps[worker] : nullptr, partial[item]);
        if (maps) pull_panel(pair, panel, maps[worker], gradient);
    });
    double totals[2] = {0.0, 0.0}, size = static_cast<double>(height) * pair.shape.floats;
    for (int64_t item = 0; item < items; ++item) totals[0] += partial[item][0], totals[1] += partial[item][1];
    *l1 = static_cast<float>(totals[0] / size), *ssim = static_cast<float>(totals[1] / size);
}

inline void l1_ssim_backward(const float* image, const float* target, const float* ssim_gradient, int64_t size, float v_l1,
                             float v_ssim, float* v_image) {
    const Floats share = v_l1 / static_cast<float>(size);
    parallel_chunks(size, 32768, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            Floats x = load_first(image + i, n), y = load_first(target + i, n);
            Floats sign = zero_unless(x > y, share) - zero_unless(x < y, share);
            store_first(v_image + i, fma(load_first(ssim_gradient + i, n), v_ssim, sign), n);
        }
    });
}

}  // namespace sd::SD_ISA
