// Which kernel computes the matrix products of wide features. Compiled once for the baseline processor, as pool.h.
#pragma once

namespace sd {

enum class MatrixPath {
    kVector,    // float32 in vector registers
    kAmx,       // tiles of bfloat16 pairs: every float32 is the sum of two terms, 16 bits of mantissa
    kAmxPlain,  // one term for the weights and for the gradient of the image: 8 bits of mantissa, half the products
};

MatrixPath matrix_path();  // as sd_set_matrix chose

}  // namespace sd
