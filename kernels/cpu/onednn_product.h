// Matrix products by oneDNN, in the free mode: its blocking may depend on the number of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/dtype.h"

namespace lckv {

// Caps oneDNN at AVX512-BF16 where the processor advertises AMX but reports no tile palette (CPUID
// leaf 0x1D): its kernels would end in an illegal instruction there. Before any other use of
// oneDNN.
void cap_onednn_instruction_set();

// A product of x [rows, k] with panels as row_product.h describes them; x in the panels' type.
struct OnednnProduct {
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
  const std::byte* panels = nullptr;
  const std::byte* x = nullptr;
  float* y = nullptr;
  const float* bias = nullptr;
  bool accumulate = false;
};

// Owner: the CPU backend. Thread: its caller's. Keeps one primitive per shape ever asked for.
class OnednnProducts {
 public:
  OnednnProducts();
  ~OnednnProducts();

  // Whether oneDNN has a fast product of this shape that reads our panels as they are: 64 columns
  // are its layout OI16i64o (float32) or OI8i64o2i (bfloat16).
  bool can_multiply(const OnednnProduct& product);
  void multiply(const OnednnProduct& product);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
