// Our own matrix product: y = x * W^T, where each output element is accumulated over k in one fixed
// order whatever the number of rows. Work is split over n only, and partial sums rest in float32
// between two chunks of k, which changes no bit. A row's result therefore never depends on its
// neighbours.
//
// Weights lie in panels of 64 columns: [n / 64][padded k / step][64][step], step 2 for bfloat16
// (operand of vdpbf16ps and of tdpbf16ps), 1 for float32; padded with zeros. oneDNN reads the same
// bytes, see onednn_product.h, so that one copy serves every kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace lckv {

inline constexpr int64_t kPanelColumns = 64;

// k as the panels have it: whole AMX tiles of bfloat16, whole cache lines of float32.
constexpr int64_t padded_k(DType dtype, int64_t k) {
  const int64_t unit = dtype == DType::kFloat32 ? 16 : 32;
  return (k + unit - 1) / unit * unit;
}
constexpr int64_t num_panels(int64_t n) { return (n + kPanelColumns - 1) / kPanelColumns; }
constexpr size_t panel_bytes(DType dtype, int64_t n, int64_t k) {
  return static_cast<size_t>(num_panels(n) * kPanelColumns * padded_k(dtype, k)) *
         dtype_bytes(dtype);
}

// Rounds to `dtype` on the way.
void pack_panels(std::span<const WeightSource> sources, DType dtype, std::byte* panels);

// sums[row][64] (+)= x[row][k] * panel[k][64] for the rows of one block over one chunk of k.
struct BlockProduct {
  const std::byte* weights = nullptr;
  const std::byte* x = nullptr;
  int64_t x_stride = 0;  // values from row to row
  int64_t k = 0;         // values of the chunk
  float* sums = nullptr;
  bool first = false;                // sums start at zero
  const std::byte* ahead = nullptr;  // weights that are needed next
  int lines_ahead = 0;               // cache lines to ask for per 256 bytes of weights
};
using BlockKernel = void (*)(const BlockProduct& block);

// One instruction set's kernels. `by_rows[r - 1]` computes blocks of r * row_unit rows.
struct RowKernels {
  const char* name = nullptr;
  DType dtype = DType::kFloat32;
  int row_unit = 1;   // rows are padded to a multiple of it
  int max_units = 1;  // of a block
  // Of a panel's chunk: what stays in the first-level cache while the row blocks pass over it.
  int64_t chunk_bytes = 16384;
  const BlockKernel* by_rows = nullptr;
};

// Highway, for every instruction set; bfloat16 values are widened and multiplied in float32.
RowKernels float32_row_kernels();
RowKernels wide_bfloat16_row_kernels();
// Only where has_avx512_bf16().
RowKernels avx512_bfloat16_row_kernels();
bool has_avx512_bf16();

// How the rows of x are laid out for one product: [chunk][padded rows][chunk_k], the last chunk
// narrower.
struct ProductShape {
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;  // as in the panels for bfloat16, as given for float32
  int64_t padded_rows = 0;
  int64_t chunk_k = 0;

  ProductShape(const RowKernels& kernels, int64_t rows, int64_t n, int64_t k);
  // Values of x, and floats of partial sums that each thread needs.
  int64_t x_values() const { return padded_rows * k; }
  int64_t sums_floats() const;
  // Panels that share the loads of x.
  int64_t panels_together() const;
  int64_t chunks() const { return (k + chunk_k - 1) / chunk_k; }
};

// Rounds and lays out rows [begin, end) of x [rows, k], k before padding; rows past the last are
// zeros.
void lay_out_rows(const ProductShape& shape, DType dtype, const float* x, int64_t k, int64_t begin,
                  int64_t end, std::byte* out);

struct PanelProduct {
  const std::byte* panels = nullptr;
  const std::byte* x = nullptr;  // as lay_out_rows gives it
  float* y = nullptr;            // [rows, n]
  const float* bias = nullptr;   // [n] or null
  bool accumulate = false;
};

// Panels [begin, end) of all rows, on the calling thread. sums: scratch, aligned to 64 bytes.
void multiply_panels(const RowKernels& kernels, const ProductShape& shape,
                     const PanelProduct& product, int64_t begin, int64_t end, float* sums);

}  // namespace lckv
