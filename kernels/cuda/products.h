// Matrix products of the CUDA backend: packs weights and chooses the kernel.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>

#include "kernels/cuda/lt_product.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/row_product.h"
#include "kernels/cuda/stream.h"
#include "kernels/cuda/weight_slot.h"
#include "kernels/ops.h"

namespace lckv {

// A packed weight's rows, where what is called from here on reads them on the device:
// chunked_k(dtype, k) values each, in the compute dtype.
const std::byte* rows_of(const PackedWeight& weight);

// Owner: the CUDA backend. Thread: its caller's.
class CudaProducts {
 public:
  CudaProducts(DType dtype, bool reproducible, UploadRing& uploads, cudaStream_t stream);

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources);
  // As Ops says of them.
  std::unique_ptr<PackedWeight> pack_on_host(std::span<const WeightSource> sources);
  std::unique_ptr<WeightSlot> allocate_slot(size_t bytes);
  void fetch(std::span<PackedWeight* const> weights, WeightSlot& slot);
  void multiply(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
                const float* bias, bool accumulate);

 private:
  // The sources' rows, packed, one after the other.
  void lay_out(std::span<const WeightSource> sources, std::byte* to);

  const DType dtype_;
  UploadRing& uploads_;
  const cudaStream_t stream_;
  std::unique_ptr<LtProducts> lt_;  // null in reproducible mode
  std::unique_ptr<Stream> copies_;  // of fetched weights; null where there is no slot
};

}  // namespace lckv
