#include "kernels/cuda/row_product.h"

#include "kernels/check.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/number_types.cuh"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
// Columns of one warp: so often does it use what it loads of x.
constexpr int kColumns = 4;

// 16 bytes.
template <class Value>
struct alignas(16) Chunk {
  static constexpr int kValues = 16 / sizeof(Value);
  Value values[kValues];
};

template <class Value, int kRows>
__global__ void __launch_bounds__(kThreads) product_kernel(ProductArgs args) {
  using Values = Chunk<Value>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const auto chunks = static_cast<int32_t>(args.k / Values::kValues);
  const int64_t column = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpThreads) * kColumns;
  const int64_t row = int64_t{blockIdx.y} * kRows;
  // Where the others begin behind the first. Past the edges the last row and column stand in, and
  // nothing is stored.
  int32_t column_at[kColumns];
  int32_t row_at[kRows];
  const auto beside = [chunks](int64_t first, int i, int64_t end) {
    const int64_t last = end - 1 - first;
    return static_cast<int32_t>((i < last ? i : last) * chunks);
  };
  for (int j = 0; j < kColumns; ++j) column_at[j] = beside(column, j, args.n);
  for (int i = 0; i < kRows; ++i) row_at[i] = beside(row, i, args.rows);
  const auto* const weights = reinterpret_cast<const Values*>(args.weights) + column * chunks;
  const auto* const x = reinterpret_cast<const Values*>(args.x) + row * chunks;
  float sums[kRows][kColumns] = {};
  for (int32_t at = lane; at < chunks; at += kWarpThreads) {
    Values columns[kColumns];
    for (int j = 0; j < kColumns; ++j) columns[j] = weights[column_at[j] + at];
    for (int i = 0; i < kRows; ++i) {
      const Values values = x[row_at[i] + at];
      for (int j = 0; j < kColumns; ++j) {
        for (int e = 0; e < Values::kValues; ++e) {
          sums[i][j] = fmaf(widened(values.values[e]), widened(columns[j].values[e]), sums[i][j]);
        }
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float sum = warp_sum(sums[i][j]);
      if (lane != 0 || row + i >= args.rows || column + j >= args.n) continue;
      if (args.bias != nullptr) sum += args.bias[column + j];
      float& y = args.y[(row + i) * args.n + column + j];
      y = args.accumulate ? y + sum : sum;
    }
  }
}

template <class Value, int kRows>
void launch_product(const ProductArgs& args, cudaStream_t stream) {
  constexpr int64_t kAcross = int64_t{kWarps} * kColumns;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>((args.n + kAcross - 1) / kAcross),
                                       static_cast<unsigned>((args.rows + kRows - 1) / kRows)),
                          .threads = kThreads};
  launch("matmul", stream, shape, product_kernel<Value, kRows>, args);
}

template <class Value>
void launch_by_rows(const ProductArgs& args, cudaStream_t stream) {
  if (args.rows == 1) {
    launch_product<Value, 1>(args, stream);
  } else if (args.rows <= 4) {
    launch_product<Value, 4>(args, stream);
  } else {
    launch_product<Value, 8>(args, stream);
  }
}

template <class Value>
__global__ void lay_out_kernel(RowLayout layout, int64_t padded_k) {
  const int64_t i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= padded_k) return;
  const WeightSource source{.data = layout.x, .dtype = layout.from};
  const float value = i < layout.k ? weight_value(source, blockIdx.x * layout.k + i) : 0.0F;
  reinterpret_cast<Value*>(layout.out)[blockIdx.x * padded_k + i] = narrowed<Value>(value);
}

}  // namespace

void multiply_rows(const ProductArgs& args, cudaStream_t stream) {
  LCKV_CHECK(args.k == chunked_k(args.dtype, args.k));
  with_values(args.dtype, [&](auto value) { launch_by_rows<decltype(value)>(args, stream); });
}

void lay_out_rows(const RowLayout& layout, cudaStream_t stream) {
  const int64_t padded_k = chunked_k(layout.to, layout.k);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(layout.rows),
                                       static_cast<unsigned>((padded_k + kThreads - 1) / kThreads)),
                          .threads = kThreads};
  with_values(layout.to, [&](auto value) {
    launch("laying out rows", stream, shape, lay_out_kernel<decltype(value)>, layout, padded_k);
  });
}

}  // namespace lckv
