#include "kernels/cpu/row_product.h"

#include <cstring>

#include "kernels/bfloat16.h"
#include "kernels/check.h"

namespace lckv {
namespace {

int64_t num_panels(int64_t n) { return (n + kPanelColumns - 1) / kPanelColumns; }

float load(const WeightSource& source, int64_t index) {
  if (source.dtype == DType::kFloat32) return static_cast<const float*>(source.data)[index];
  return bfloat16_to_float(static_cast<const uint16_t*>(source.data)[index]);
}

// Column `column` of the panels, from row `row` of `source`.
void pack_column(const WeightSource& source, int64_t row, int64_t column, DType dtype,
                 std::byte* panels) {
  const int64_t k = source.k;
  const int64_t panel = column / kPanelColumns;
  const int64_t lane = column % kPanelColumns;
  if (dtype == DType::kFloat32) {
    float* const to = reinterpret_cast<float*>(panels) + panel * k * kPanelColumns + lane;
    for (int64_t i = 0; i < k; ++i) to[i * kPanelColumns] = load(source, row * k + i);
    return;
  }
  auto* const to = reinterpret_cast<uint16_t*>(panels) + panel * k * kPanelColumns + 2 * lane;
  const bool same = source.dtype == DType::kBFloat16;
  const auto* const from = static_cast<const uint16_t*>(source.data) + (same ? row * k : 0);
  for (int64_t i = 0; i < k; ++i) {
    to[(i / 2) * 2 * kPanelColumns + i % 2] =
        same ? from[i] : float_to_bfloat16(load(source, row * k + i));
  }
}

}  // namespace

size_t panel_bytes(DType dtype, int64_t n, int64_t k) {
  return static_cast<size_t>(num_panels(n) * kPanelColumns * k) * dtype_bytes(dtype);
}

void pack_panels(std::span<const WeightSource> sources, DType dtype, std::byte* panels) {
  int64_t n = 0;
  const int64_t k = sources.front().k;
  LCKV_CHECK(dtype == DType::kFloat32 || k % 2 == 0);
  for (const WeightSource& source : sources) {
    LCKV_CHECK(source.k == k && source.dtype != DType::kFloat16);
    const int64_t first = n;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < source.n; ++row) {
      pack_column(source, row, first + row, dtype, panels);
    }
    n += source.n;
  }
}

}  // namespace lckv
