// Blocks of rows on AVX512-BF16: one vdpbf16ps per row, pair of k and 16 columns. By attributes,
// not by options of this file, so that no inline function of a header is compiled for one machine
// only.
#include <cpuid.h>
#include <immintrin.h>

#include "kernels/cpu/row_product.h"

namespace lckv {
namespace {

constexpr int kMaxRows = 6;  // 24 sums and 4 weights of 32 registers
constexpr int kVectors = 4;
constexpr int64_t kLine = 64;

template <int kRows>
__attribute__((target("avx512f,avx512bw,avx512bf16"))) void multiply_rows(
    const BlockProduct& block) {
  __m512 sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = block.first ? _mm512_setzero_ps()
                                 : _mm512_load_ps(block.sums + row * kPanelColumns + v * 16);
    }
  }
  const auto* const weights = reinterpret_cast<const __m512bh*>(block.weights);
  const auto* const x = reinterpret_cast<const int32_t*>(block.x);
  const auto* ahead = reinterpret_cast<const char*>(block.ahead);
  const int64_t stride = block.x_stride / 2;
  const int lines = block.lines_ahead;
  for (int64_t i = 0; i < block.k / 2; ++i) {
    for (int line = 0; line < lines; ++line) _mm_prefetch(ahead + line * kLine, _MM_HINT_T0);
    ahead += lines * kLine;
    __m512bh values[kVectors];
    for (int v = 0; v < kVectors; ++v) values[v] = weights[i * kVectors + v];
    for (int row = 0; row < kRows; ++row) {
      const auto pair = (__m512bh)_mm512_set1_epi32(x[row * stride + i]);
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = _mm512_dpbf16_ps(sums[row][v], values[v], pair);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_ps(block.sums + row * kPanelColumns + v * 16, sums[row][v]);
    }
  }
}

constexpr BlockKernel kByRows[kMaxRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                           multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};

}  // namespace

bool has_avx512_bf16() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __builtin_cpu_supports("avx512bw") != 0 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a & (1U << 5)) != 0;
}

RowKernels avx512_bfloat16_row_kernels() {
  return {.name = "avx512_bf16",
          .dtype = DType::kBFloat16,
          .row_unit = 1,
          .max_units = kMaxRows,
          .by_rows = kByRows};
}

}  // namespace lckv
