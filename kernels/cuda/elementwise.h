// Row operations on the device; see Ops for the meaning. All pointers are device pointers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/ops.h"

namespace lckv {

struct RmsNormRows {
  const float* x = nullptr;  // [rows, hidden]
  const float* weight = nullptr;
  float eps = 0.0F;
  int64_t rows = 0;
  int64_t hidden = 0;
  DType dtype = DType::kFloat32;  // of out
  std::byte* out = nullptr;       // [rows, chunked_k(dtype, hidden)]
};
void rms_norm_rows(const RmsNormRows& args, cudaStream_t stream);

struct RopeRows {
  float* x = nullptr;  // [rows, row_stride]
  int64_t row_stride = 0;
  const int32_t* positions = nullptr;  // [rows]
  int64_t rows = 0;
  int32_t heads = 0;
  int32_t head_dim = 0;
  const float* cos = nullptr;  // [max_positions, head_dim / 2]
  const float* sin = nullptr;
};
void rope_rows(const RopeRows& args, cudaStream_t stream);

struct SiluMulRows {
  const float* gate_up = nullptr;  // [rows, 2 * inner]
  int64_t rows = 0;
  int64_t inner = 0;
  DType dtype = DType::kFloat32;  // of out
  std::byte* out = nullptr;       // [rows, chunked_k(dtype, inner)]
};
void silu_mul_rows(const SiluMulRows& args, cudaStream_t stream);

// Rows of `hidden` floats by ids [count].
struct MovedRows {
  const float* x = nullptr;
  const int32_t* ids = nullptr;
  int64_t count = 0;
  int64_t hidden = 0;
  float* out = nullptr;
};
void gather_rows_by_id(const MovedRows& args, cudaStream_t stream);
void scatter_rows_by_id(const MovedRows& args, cudaStream_t stream);

// out[i] = the sum of parts[p * count + i] over p, from part 0 on.
void sum_parts(const float* parts, int32_t num_parts, int64_t count, float* out,
               cudaStream_t stream);

// Rows of `hidden` values by tokens [count], in float32; zeros where the table has no such row.
struct EmbeddedRows {
  const std::byte* table = nullptr;  // [n, row_values], of which the first `hidden` are the row
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  int64_t row_values = 0;
  const TokenId* tokens = nullptr;
  int32_t first = 0;  // token of row 0
  int64_t count = 0;
  int64_t hidden = 0;
  float* out = nullptr;
};
void embed_rows(const EmbeddedRows& args, cudaStream_t stream);

}  // namespace lckv
