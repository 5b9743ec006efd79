// Matrix products by oneDNN, in the free mode: fastest where its blocking may depend on the number of rows.
#pragma once

#include <memory>
#include <span>

#include "kernels/ops.h"

namespace lckv {

// Caps oneDNN at AVX512-BF16 where the processor advertises AMX but reports no tile palette (CPUID leaf
// 0x1D): its kernels would end in an illegal instruction there. Before any other use of oneDNN.
void cap_onednn_instruction_set();

class OnednnProducts {
 public:
  OnednnProducts();
  ~OnednnProducts();

  // x [rows, k] in the weight's type, y [rows, n] float32.
  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources, DType dtype);
  void multiply(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
                const float* bias, bool accumulate);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
