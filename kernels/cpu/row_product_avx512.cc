// The panel product on AVX512-BF16: one vdpbf16ps per 16 columns, pair of k and row.
#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/row_product.h"

namespace lckv {
namespace {

constexpr int kRows = 6;  // 24 accumulators of 32 registers
constexpr int kVectors = 4;

template <int kCount>
__attribute__((target("avx512f,avx512bw,avx512bf16"))) void multiply_block(
    const PanelProduct& product, const __m512bh* weights, int64_t first_row, int64_t column) {
  __m512 sums[kCount][kVectors];
  for (int row = 0; row < kCount; ++row) {
    for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_setzero_ps();
  }
  const auto* const x = reinterpret_cast<const int32_t*>(product.x) + first_row * product.k / 2;
  const int64_t pairs = product.k / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    // A panel is streamed once for few rows: ask for what comes a few kilobytes later.
    if constexpr (kCount <= 2) {
      const char* const ahead = reinterpret_cast<const char*>(weights + i * kVectors) + 4096;
      for (int v = 0; v < kVectors; ++v) _mm_prefetch(ahead + v * 64, _MM_HINT_T0);
    }
    for (int row = 0; row < kCount; ++row) {
      const auto pair = (__m512bh)_mm512_set1_epi32(x[row * pairs + i]);
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = _mm512_dpbf16_ps(sums[row][v], weights[i * kVectors + v], pair);
      }
    }
  }
  for (int row = 0; row < kCount; ++row) {
    float* const y = product.y + (first_row + row) * product.n + column;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = product.n - column - v * 16;
      if (left <= 0) break;
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1);
      __m512 sum = sums[row][v];
      if (product.bias != nullptr) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, product.bias + column + v * 16));
      }
      if (product.accumulate) {
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y + v * 16));
      }
      _mm512_mask_storeu_ps(y + v * 16, mask, sum);
    }
  }
}

template <int kCount>
void multiply_tail(const PanelProduct& product, const __m512bh* weights, int64_t row,
                   int64_t column) {
  if (product.rows - row == kCount) return multiply_block<kCount>(product, weights, row, column);
  if constexpr (kCount > 1) multiply_tail<kCount - 1>(product, weights, row, column);
}

}  // namespace

bool has_avx512_bf16() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __builtin_cpu_supports("avx512bw") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a & (1U << 5)) != 0;
}

void multiply_bfloat16_avx512(const PanelProduct& product, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const auto* const weights = reinterpret_cast<const __m512bh*>(
        product.panels + p * kPanelColumns * product.k * 2);
    int64_t row = 0;
    for (; row + kRows <= product.rows; row += kRows) {
      multiply_block<kRows>(product, weights, row, p * kPanelColumns);
    }
    multiply_tail<kRows - 1>(product, weights, row, p * kPanelColumns);
  }
}

}  // namespace lckv
