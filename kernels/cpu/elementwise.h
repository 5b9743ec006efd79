// Vectorised loops over one row; lengths are free, sums run over fixed lanes in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace lckv {

void rms_norm_row(const float* x, const float* weight, float eps, int64_t size, float* out);
// out[i] = silu(gate[i]) * up[i]
void silu_mul_row(const float* gate, const float* up, int64_t size, float* out);
// Rotates x [2 * half]: (low, high) by the angles of cos and sin [half].
void rotate_row(float* x, const float* cos, const float* sin, int64_t half);
// Rounds to float32 (a copy) or bfloat16.
void convert_row(const float* x, int64_t size, DType dtype, std::byte* out);

// Floats in a vector of the instruction set in use: sums depend on it.
int vector_lanes();

}  // namespace lckv
