// Chosen rows of big arrays: copied out, and stepped in place by Adam. A view of a block draws some of its Gaussians; what a step
// costs follows these.
//
// Work unit: a chunk of rows. Bytes per float of a row: 8 to copy, 28 to step. Bound: memory; short rows are packed into vectors
// in L1, because a vector operation on 3 of 16 lanes costs as much as one on all.
#pragma once
#include "adam.h"

namespace sd::SD_ISA {

constexpr int64_t kTakenAhead = 12;  // prefetched; random rows have no pattern that the processor would see
constexpr int kPackFloats = 1024;   // of one array, in L1

inline int64_t rows_out_of_range(const sd_rows& rows) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < rows.count; ++i) wrong += static_cast<uint64_t>(rows.index[i]) >= static_cast<uint64_t>(rows.total);
    return wrong;
}

inline void prefetch_row(const float* source, const sd_rows& rows, int64_t i, int64_t end) {
    if (i + kTakenAhead >= end) return;
    const float* row = source + rows.index[i + kTakenAhead] * rows.stride;
    for (int64_t k = 0; k < rows.size; k += 16) prefetch(row + k);
}

inline void copy_row(float* to, const float* from, int64_t size) {
    for (int64_t k = 0; k < size; k += kLanes) {
        int n = static_cast<int>(least<int64_t>(kLanes, size - k));
        store_first(to + k, load_first(from + k, n), n);
    }
}

inline int64_t take_rows(const float* source, const sd_rows& rows, float* out) {
    if (int64_t wrong = rows_out_of_range(rows)) return wrong;
    parallel_chunks(rows.count, most<int64_t>(1, 16384 / most<int64_t>(rows.size, 1)), [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; ++i) {
            prefetch_row(source, rows, i, end);
            copy_row(out + i * rows.size, source + rows.index[i] * rows.stride, rows.size);
        }
    });
    return 0;
}

struct AdamArrays {
    float* of[3];  // parameter, first and second moment
    const float* grad;
    int64_t grad_stride;
};

struct AdamRows {
    AdamArrays arrays;
    const sd_rows& rows;
    AdamStep step, leading_step;
    float leading;  // so many numbers of a row are stepped at the rate of leading_step

    void in_place(int64_t i) const {
        for (float* array : arrays.of) prefetch_row(array, rows, i, rows.count);
        const int64_t at = rows.index[i] * rows.stride;
        float *p = arrays.of[0] + at, *m = arrays.of[1] + at, *v = arrays.of[2] + at;
        const float* g = arrays.grad + i * arrays.grad_stride;
        for (int64_t k = 0; k < rows.size; k += kLanes) {
            Floats rate = select(iota() < leading - static_cast<float>(k), leading_step.rate, step.rate);
            step.apply(p, g, m, v, k, static_cast<int>(least<int64_t>(kLanes, rows.size - k)), rate);
        }
    }

    bool side_by_side(int64_t begin, int64_t end) const {
        bool run = rows.stride == rows.size && arrays.grad_stride == rows.size;
        for (int64_t i = begin; i < end && run; ++i) run = rows.index[i] - rows.index[begin] == i - begin;
        return run;
    }

    // Rows of kSize numbers (0: of any size) that fit a pack: into L1, stepped, and back.
    template <int kSize> void packed(int64_t begin, int64_t end) const {
        alignas(64) float pack[4][kPackFloats + kLanes];
        const int64_t size = kSize ? kSize : rows.size;
        for (int64_t i = begin; i < end; ++i) {
            float* to[4] = {pack[0] + (i - begin) * size, pack[1] + (i - begin) * size, pack[2] + (i - begin) * size,
                            pack[3] + (i - begin) * size};
            for (int a = 0; a < 3; ++a) {
                prefetch_row(arrays.of[a], rows, i, rows.count);
                const float* row = arrays.of[a] + rows.index[i] * rows.stride;
                for (int64_t k = 0; k < size; ++k) to[a][k] = row[k];
            }
            for (int64_t k = 0; k < size; ++k) to[3][k] = arrays.grad[i * arrays.grad_stride + k];
        }
        step.apply(pack[0], pack[3], pack[1], pack[2], (end - begin) * size);
        for (int64_t i = begin; i < end; ++i)
            for (int a = 0; a < 3; ++a) {
                float* row = arrays.of[a] + rows.index[i] * rows.stride;
                for (int64_t k = 0; k < size; ++k) row[k] = pack[a][(i - begin) * size + k];
            }
    }

    void pass(int64_t begin, int64_t end) const {
        if (leading > 0 || rows.size >= 2 * kLanes) {
            for (int64_t i = begin; i < end; ++i) in_place(i);
        } else if (side_by_side(begin, end)) {
            const int64_t at = rows.index[begin] * rows.stride;
            step.apply(arrays.of[0] + at, arrays.grad + begin * rows.size, arrays.of[1] + at, arrays.of[2] + at,
                       (end - begin) * rows.size);
        } else if (rows.size == 1) {
            packed<1>(begin, end);
        } else if (rows.size == 3) {
            packed<3>(begin, end);
        } else if (rows.size == 4) {
            packed<4>(begin, end);
        } else {
            packed<0>(begin, end);
        }
    }
};

inline int64_t adam_rows(const AdamRows& adam) {
    const sd_rows& rows = adam.rows;
    if (int64_t wrong = rows_out_of_range(rows)) return wrong;
    const int64_t pack = most<int64_t>(1, kPackFloats / most<int64_t>(rows.size, 1));
    parallel_chunks(rows.count, 16 * pack, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += pack) adam.pass(i, least(end, i + pack));
    });
    return 0;
}

}  // namespace sd::SD_ISA
