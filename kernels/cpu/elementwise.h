// Vectorised loops over one row; lengths are free, sums run over fixed lanes in a fixed order.
#pragma once

#include <cstdint>

namespace lckv {

void rms_norm_row(const float* x, const float* weight, float eps, int64_t size, float* out);
// out[i] = silu(gate[i]) * up[i]
void silu_mul_row(const float* gate, const float* up, int64_t size, float* out);
// Rotates x [2 * half]: (low, high) by the angles of cos and sin [half].
void rotate_row(float* x, const float* cos, const float* sin, int64_t half);
void float_to_bfloat16_row(const float* x, int64_t size, uint16_t* out);

// Floats in a vector of the instruction set in use: sums depend on it.
int vector_lanes();

}  // namespace lckv
