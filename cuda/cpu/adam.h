// Adam (Kingma & Ba 2015) in place, optionally only on visible rows (rows that got no gradient keep their moments).
//
// Work unit: a chunk of rows. Bytes: 16 read and 12 written per parameter. Bound: memory.
//   m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
#pragma once
#include "../bindings.h"
#include "vector.h"

namespace sd::SD_ISA {

struct AdamStep {
    Floats beta1, beta2, rest1, rest2, rate, inverse_root, eps;
    AdamStep(float lr, float b1, float b2, float epsilon, int64_t step)
        : beta1(b1), beta2(b2), rest1(static_cast<float>(1.0 - static_cast<double>(b1))),
          rest2(static_cast<float>(1.0 - static_cast<double>(b2))), eps(epsilon) {
        double bias1 = 1.0 - ::pow(static_cast<double>(b1), static_cast<double>(step));
        double bias2 = 1.0 - ::pow(static_cast<double>(b2), static_cast<double>(step));
        rate = static_cast<float>(lr / bias1), inverse_root = static_cast<float>(1.0 / ::sqrt(bias2));
    }
    void apply(float* p, const float* grad, float* m, float* v, int64_t count) const {
        for (int64_t i = 0; i < count; i += kLanes)
            apply(p, grad, m, v, i, static_cast<int>(least<int64_t>(kLanes, count - i)), rate);
    }
    void apply(float* p, const float* grad, float* m, float* v, int64_t i, int n, Floats own_rate) const {
        Floats g = load_first(grad + i, n);
        Floats m1 = fma(beta1, load_first(m + i, n), rest1 * g);
        Floats v1 = fma(beta2, load_first(v + i, n), rest2 * g * g);
        store_first(m + i, m1, n), store_first(v + i, v1, n);
        store_first(p + i, load_first(p + i, n) - own_rate * m1 / fma(sqrt(v1), inverse_root, eps), n);
    }
};

inline void adam(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t rows, int64_t row_size,
                 const uint8_t* visible, const AdamStep& step) {
    int64_t chunk = most<int64_t>(1, 16384 / most<int64_t>(row_size, 1));
    parallel_chunks(rows, chunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t row = begin; row < end;) {
            int64_t stop = visible ? row : end;
            while (visible && stop < end && visible[stop]) ++stop;
            int64_t at = row * row_size;
            step.apply(param + at, grad + at, exp_avg + at, exp_avg_sq + at, (stop - row) * row_size);
            row = stop + (visible ? 1 : 0);
        }
    });
}

}  // namespace sd::SD_ISA
