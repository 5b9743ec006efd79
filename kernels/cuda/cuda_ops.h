// Opens the backend for NVIDIA GPUs.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace lckv {

struct CudaOpsOptions {
  int32_t device = 0;  // as the driver counts them, CUDA_VISIBLE_DEVICES applied
  DType dtype = DType::kFloat32;
  bool reproducible = false;
  bool records_batches = true;  // Ops::repeat_batch repeats them
  uint64_t required_bytes = 0;  // of device memory, for everything that will be allocated
  // For parts of long histories that are added up; attention that needs more is cut into parts.
  uint64_t attention_share_bytes = uint64_t{64} << 20;
  int32_t head_dim = 0;  // of all layers; 0: not checked
};

// The device belongs to the calling thread and those it hands the Ops to, one at a time. Errors,
// each of one line: FailedPrecondition where there is no driver, device or cuBLASLt, the driver is
// too old, or no kernel was compiled for the device's compute capability or the model's head size;
// OutOfRange where there is no device of this number; ResourceExhausted where it has too little
// free memory.
absl::StatusOr<std::unique_ptr<Ops>> open_cuda_ops(const CudaOpsOptions& options);

// What results depend on, besides the options.
struct CudaDeviceTraits {
  int32_t num_multiprocessors = 1;
  int32_t capability = 0;  // 90: compute capability 9.0
};

// The same of a device that was found fit.
std::unique_ptr<Ops> make_cuda_ops(const CudaOpsOptions& options, const CudaDeviceTraits& traits);

}  // namespace lckv
