// Matrix products of the CPU backend: packs weights and chooses the kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/onednn_product.h"
#include "kernels/cpu/row_product.h"
#include "kernels/cpu/threads.h"

namespace lckv {

// Owner: the CPU backend. Thread: its caller's.
class CpuProducts {
 public:
  CpuProducts(const CpuOpsOptions& options, CpuThreads& threads);

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) const;
  void multiply(const PackedWeight& weight, const float* x, int64_t rows, float* y,
                const float* bias, bool accumulate);
  // What results depend on.
  std::string numerics() const;
  // As many as one load of the weights into registers serves.
  int32_t free_rows() const { return kernels_.row_unit * kernels_.max_units; }

 private:
  void multiply_by_onednn(const OnednnProduct& product, const float* x);
  void multiply_by_rows(const PackedWeight& weight, const float* x, int64_t rows, float* y,
                        const float* bias, bool accumulate);
  std::byte* scratch(std::unique_ptr<AnonymousMemory>& memory, size_t bytes);

  const CpuOpsOptions options_;
  CpuThreads& threads_;
  const RowKernels kernels_;
  std::unique_ptr<OnednnProducts> onednn_;  // null in reproducible mode
  std::unique_ptr<AnonymousMemory> input_;  // x in the compute dtype
  std::unique_ptr<AnonymousMemory> sums_;   // of each thread
};

}  // namespace lckv
