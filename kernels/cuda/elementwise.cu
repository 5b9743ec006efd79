#include "kernels/cuda/elementwise.h"

#include <cmath>

#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/number_types.cuh"
#include "kernels/cuda/row_chunks.h"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

constexpr int kThreads = 256;

// One block per row, and as many side by side as its width fills.
LaunchShape by_row(int64_t rows, int64_t width) {
  const int64_t across = (width + kThreads - 1) / kThreads;
  return {.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(across)),
          .threads = kThreads};
}

__device__ int64_t column() { return int64_t{blockIdx.y} * kThreads + threadIdx.x; }

// Of `padded` values, those beyond the row zeros.
template <class Value>
__global__ void rms_norm_kernel(RmsNormRows args, int64_t padded) {
  const float* const x = args.x + blockIdx.x * args.hidden;
  auto* const out = reinterpret_cast<Value*>(args.out) + blockIdx.x * padded;
  float sum = 0.0F;
  for (int64_t i = threadIdx.x; i < args.hidden; i += kThreads) sum += x[i] * x[i];
  const float mean = block_sum<kThreads>(sum) / static_cast<float>(args.hidden);
  const float scale = 1.0F / sqrtf(mean + args.eps);
  for (int64_t i = threadIdx.x; i < padded; i += kThreads) {
    out[i] = narrowed<Value>(i < args.hidden ? x[i] * scale * args.weight[i] : 0.0F);
  }
}

__global__ void rope_kernel(RopeRows args) {
  const int32_t half = args.head_dim / 2;
  const int64_t pair = column();
  if (pair >= int64_t{args.heads} * half) return;
  const int64_t i = pair % half;
  float* const low = args.x + blockIdx.x * args.row_stride + pair / half * args.head_dim + i;
  const int64_t at = int64_t{args.positions[blockIdx.x]} * half + i;
  const float cos = args.cos[at];
  const float sin = args.sin[at];
  const float a = low[0];
  const float b = low[half];
  low[0] = a * cos - b * sin;
  low[half] = b * cos + a * sin;
}

template <class Value>
__global__ void silu_mul_kernel(SiluMulRows args, int64_t padded) {
  const int64_t i = column();
  if (i >= padded) return;
  float product = 0.0F;
  if (i < args.inner) {
    const float gate = args.gate_up[blockIdx.x * 2 * args.inner + i];
    const float up = args.gate_up[blockIdx.x * 2 * args.inner + args.inner + i];
    product = gate / (1.0F + expf(-gate)) * up;
  }
  reinterpret_cast<Value*>(args.out)[blockIdx.x * padded + i] = narrowed<Value>(product);
}

__global__ void gather_kernel(MovedRows args) {
  const int64_t i = column();
  if (i >= args.hidden) return;
  args.out[blockIdx.x * args.hidden + i] = args.x[args.ids[blockIdx.x] * args.hidden + i];
}

__global__ void scatter_kernel(MovedRows args) {
  const int64_t i = column();
  if (i >= args.hidden) return;
  args.out[args.ids[blockIdx.x] * args.hidden + i] = args.x[blockIdx.x * args.hidden + i];
}

__global__ void embed_kernel(EmbeddedRows args) {
  const int64_t i = column();
  if (i >= args.hidden) return;
  const int64_t row = int64_t{id_of(args.tokens[blockIdx.x])} - args.first;
  const WeightSource table{.data = args.table, .dtype = args.dtype};
  args.out[blockIdx.x * args.hidden + i] =
      row < 0 || row >= args.n ? 0.0F : weight_value(table, row * args.row_values + i);
}

__global__ void sum_kernel(const float* parts, int32_t num_parts, int64_t count, float* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = parts[i];
  for (int32_t part = 1; part < num_parts; ++part) sum += parts[part * count + i];
  out[i] = sum;
}

LaunchShape by_value(int64_t count) {
  return {.grid = dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)),
          .threads = kThreads};
}

}  // namespace

void rms_norm_rows(const RmsNormRows& args, cudaStream_t stream) {
  with_values(args.dtype, [&](auto value) {
    launch("rms_norm", stream, by_row(args.rows, 1), rms_norm_kernel<decltype(value)>, args,
           chunked_k(args.dtype, args.hidden));
  });
}

void rope_rows(const RopeRows& args, cudaStream_t stream) {
  launch("rope", stream, by_row(args.rows, int64_t{args.heads} * args.head_dim / 2), rope_kernel,
         args);
}

void silu_mul_rows(const SiluMulRows& args, cudaStream_t stream) {
  const int64_t padded = chunked_k(args.dtype, args.inner);
  with_values(args.dtype, [&](auto value) {
    launch("silu_mul", stream, by_row(args.rows, padded), silu_mul_kernel<decltype(value)>, args,
           padded);
  });
}

void gather_rows_by_id(const MovedRows& args, cudaStream_t stream) {
  launch("gather_rows", stream, by_row(args.count, args.hidden), gather_kernel, args);
}

void scatter_rows_by_id(const MovedRows& args, cudaStream_t stream) {
  launch("scatter_rows", stream, by_row(args.count, args.hidden), scatter_kernel, args);
}

void sum_parts(const float* parts, int32_t num_parts, int64_t count, float* out,
               cudaStream_t stream) {
  launch("sum_parts", stream, by_value(count), sum_kernel, parts, num_parts, count, out);
}

void embed_rows(const EmbeddedRows& args, cudaStream_t stream) {
  launch("embed", stream, by_row(args.count, args.hidden), embed_kernel, args);
}

}  // namespace lckv
