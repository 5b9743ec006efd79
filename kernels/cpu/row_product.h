// Our own matrix product, row by row: y = x * W^T, where each output element is accumulated over k in one
// fixed order whatever the number of rows. Work is split over n only. A row's result therefore never
// depends on its neighbours, and one row costs one row.
//
// Weights lie in panels of 64 columns: [n / 64][k / step][64][step], step 2 for bfloat16 (the operand of
// the AVX512-BF16 dot product), 1 for float32; the last panel is padded with zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace lckv {

inline constexpr int64_t kPanelColumns = 64;

// x holds rows of k values, in float32 or, for bfloat16 panels, in bfloat16 (k even).
struct PanelProduct {
  const std::byte* panels = nullptr;
  const std::byte* x = nullptr;
  float* y = nullptr;
  const float* bias = nullptr;  // [n] or null
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool accumulate = false;
};

// Panels [begin, end) of all rows, on the calling thread.
using PanelKernel = void (*)(const PanelProduct& product, int64_t begin, int64_t end);

// Highway; bfloat16 values are widened and multiplied in float32.
void multiply_float32(const PanelProduct& product, int64_t begin, int64_t end);
void multiply_bfloat16_wide(const PanelProduct& product, int64_t begin, int64_t end);
// Only where has_avx512_bf16().
void multiply_bfloat16_avx512(const PanelProduct& product, int64_t begin, int64_t end);
bool has_avx512_bf16();

size_t panel_bytes(DType dtype, int64_t n, int64_t k);
// Rounds to `dtype` on the way.
void pack_panels(std::span<const WeightSource> sources, DType dtype, std::byte* panels);

}  // namespace lckv
