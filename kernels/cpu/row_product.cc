#include "kernels/cpu/row_product.h"

#include <algorithm>
#include <cstring>

#include "kernels/bfloat16.h"
#include "kernels/check.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

// Rows whose partial sums and chunk of x stay in the second-level cache, for four panels at a time.
constexpr int64_t kRowsTogether = 512;
constexpr int64_t kPanelsTogether = 4;
constexpr int64_t kFewRows = 64;

// Column `column` of the panels, from row `row` of `source`.
void pack_column(const WeightSource& source, int64_t row, int64_t column, DType dtype,
                 std::byte* panels) {
  const int64_t k = source.k;
  const int64_t panel = column / kPanelColumns * kPanelColumns * padded_k(dtype, k);
  const int64_t lane = column % kPanelColumns;
  if (dtype == DType::kFloat32) {
    float* const to = reinterpret_cast<float*>(panels) + panel + lane;
    for (int64_t i = 0; i < k; ++i) to[i * kPanelColumns] = weight_value(source, row * k + i);
    return;
  }
  auto* const to = reinterpret_cast<uint16_t*>(panels) + panel + 2 * lane;
  const bool same = source.dtype == DType::kBFloat16;
  const auto* const from = static_cast<const uint16_t*>(source.data) + (same ? row * k : 0);
  for (int64_t i = 0; i < k; ++i) {
    to[i / 2 * 2 * kPanelColumns + i % 2] =
        same ? from[i] : float_to_bfloat16(weight_value(source, row * k + i));
  }
}

// Takes finished sums of `rows` rows of one panel to y.
void finish(const ProductShape& shape, const PanelProduct& product, int64_t first_row, int64_t rows,
            int64_t panel, const float* sums) {
  const int64_t column = panel * kPanelColumns;
  const int64_t columns = std::min(kPanelColumns, shape.n - column);
  const float* const bias = product.bias == nullptr ? nullptr : product.bias + column;
  for (int64_t row = 0; row < rows; ++row, sums += kPanelColumns) {
    float* const y = product.y + (first_row + row) * shape.n + column;
    if (bias == nullptr && !product.accumulate) {
      std::copy_n(sums, columns, y);
      continue;
    }
    for (int64_t i = 0; i < columns; ++i) {
      const float sum = bias == nullptr ? sums[i] : sums[i] + bias[i];
      y[i] = product.accumulate ? y[i] + sum : sum;
    }
  }
}

// The rows of one walk over the panels, cut into blocks of nearly equal size.
struct RowBlocks {
  RowBlocks(const RowKernels& kernels, int64_t rows)
      : unit(kernels.row_unit),
        units((rows + unit - 1) / unit),
        count((units + kernels.max_units - 1) / kernels.max_units) {}
  int64_t begin(int64_t block) const { return units * block / count * unit; }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }

  const int64_t unit;
  const int64_t units;
  const int64_t count;
};

}  // namespace

void pack_panels(std::span<const WeightSource> sources, DType dtype, std::byte* panels) {
  int64_t n = 0;
  const int64_t k = sources.front().k;
  for (const WeightSource& source : sources) {
    LCKV_CHECK(source.k == k);
    const int64_t first = n;
#pragma omp parallel for schedule(static) if (source.n * k > 65536)
    for (int64_t row = 0; row < source.n; ++row) {
      pack_column(source, row, first + row, dtype, panels);
    }
    n += source.n;
  }
}

ProductShape::ProductShape(const RowKernels& kernels, int64_t rows_given, int64_t n_given,
                           int64_t k_given)
    : rows(rows_given),
      n(n_given),
      k(kernels.dtype == DType::kFloat32 ? k_given : padded_k(kernels.dtype, k_given)) {
  const int64_t unit = kernels.row_unit;
  padded_rows = (rows + unit - 1) / unit * unit;
  // One block of single rows passes over a panel once: nothing is gained by cutting k.
  const bool once = unit == 1 && rows <= kernels.max_units;
  const auto bytes = static_cast<int64_t>(dtype_bytes(kernels.dtype));
  chunk_k = once ? k : kernels.chunk_bytes / kPanelColumns / bytes;
}

int64_t ProductShape::panels_together() const { return rows <= kFewRows ? 1 : kPanelsTogether; }

int64_t ProductShape::sums_floats() const {
  return std::min(padded_rows, kRowsTogether) * kPanelColumns * panels_together();
}

void lay_out_rows(const ProductShape& shape, DType dtype, const float* x, int64_t k, int64_t begin,
                  int64_t end, std::byte* out) {
  const auto bytes = static_cast<int64_t>(dtype_bytes(dtype));
  for (int64_t from = 0; from < shape.k; from += shape.chunk_k) {
    const int64_t width = std::min(shape.chunk_k, shape.k - from);
    const int64_t given = std::clamp<int64_t>(k - from, 0, width);
    for (int64_t row = begin; row < end; ++row) {
      std::byte* const to = out + (from * shape.padded_rows + row * width) * bytes;
      const int64_t values = row < shape.rows ? given : 0;
      if (values > 0) convert_row(x + row * k + from, values, dtype, to);
      std::memset(to + values * bytes, 0, static_cast<size_t>((width - values) * bytes));
    }
  }
}

void multiply_panels(const RowKernels& kernels, const ProductShape& shape,
                     const PanelProduct& product, int64_t begin, int64_t end, float* sums) {
  const auto bytes = static_cast<int64_t>(dtype_bytes(kernels.dtype));
  const auto panel_size = static_cast<int64_t>(panel_bytes(kernels.dtype, kPanelColumns, shape.k));
  const int64_t together = shape.panels_together();
  const bool once = shape.chunks() == 1;
  for (int64_t row = 0; row < shape.padded_rows; row += kRowsTogether) {
    const int64_t rows = std::min(kRowsTogether, shape.padded_rows - row);
    const RowBlocks blocks(kernels, rows);
    for (int64_t group = begin; group < end; group += together) {
      const int64_t group_end = std::min(end, group + together);
      for (int64_t from = 0; from < shape.k; from += shape.chunk_k) {
        const int64_t width = std::min(shape.chunk_k, shape.k - from);
        for (int64_t panel = group; panel < group_end; ++panel) {
          const std::byte* const weights =
              product.panels + panel * panel_size + from * kPanelColumns * bytes;
          const std::byte* const next =
              panel + 1 < group_end ? weights + panel_size
              : group_end - group == 1
                  ? weights + width * kPanelColumns * bytes
                  : weights + width * kPanelColumns * bytes - (panel - group) * panel_size;
          for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t size = blocks.size(block);
            const int64_t at = blocks.begin(block);
            // The blocks of a chunk share the work of asking for the next one; a lone block asks
            // for what it needs itself a few kilobytes later.
            const int lines = blocks.count == 1 ? 4 : blocks.count <= 3 ? 2 : 1;
            const int64_t asked = block * width * kPanelColumns * bytes * lines / 4;
            kernels.by_rows[size / kernels.row_unit - 1](
                {.weights = weights,
                 .x = product.x + (from * shape.padded_rows + (row + at) * width) * bytes,
                 .x_stride = width,
                 .k = width,
                 .sums = sums + ((panel - group) * rows + at) * kPanelColumns,
                 .first = from == 0,
                 .ahead = once ? weights + 4096 : next + asked,
                 .lines_ahead = asked < width * kPanelColumns * bytes ? lines : 0});
          }
        }
      }
      for (int64_t panel = group; panel < group_end; ++panel) {
        finish(shape, product, row, std::min(rows, shape.rows - row), panel,
               sums + (panel - group) * rows * kPanelColumns);
      }
    }
  }
}

}  // namespace lckv
