// Our own matrix product, y (+)= x * W^T (+ bias), for reproducible mode and for shapes that
// cuBLASLt has no kernel for. Each element is accumulated over k by one warp: lane l takes the
// values that lie l chunks of 16 bytes into every stretch of 32 chunks, in ascending order and by
// fused steps, and the lanes' sums are added as one tree. All of this follows from k alone. How
// many rows and columns a warp works on together changes what is loaded when, not what is added to
// what: a row's result cannot depend on its neighbours, their number or their order.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/row_chunks.h"
#include "kernels/dtype.h"

namespace lckv {

// One product. All pointers are device pointers.
struct ProductArgs {
  DType dtype = DType::kFloat32;       // of weights and x
  const std::byte* weights = nullptr;  // [n, k]
  const std::byte* x = nullptr;        // [rows, k]
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;                // whole chunks
  float* y = nullptr;           // [rows, n]
  const float* bias = nullptr;  // [n], null for none
  bool accumulate = false;
};

void multiply_rows(const ProductArgs& args, cudaStream_t stream);

// Rows of a matrix on the device, rounded to `to` and padded with zeros to whole chunks.
struct RowLayout {
  const std::byte* x = nullptr;  // [rows, k]
  DType from = DType::kFloat32;
  DType to = DType::kFloat32;
  int64_t rows = 0;
  int64_t k = 0;
  std::byte* out = nullptr;  // [rows, chunked_k(to, k)]
};
void lay_out_rows(const RowLayout& layout, cudaStream_t stream);

}  // namespace lckv
