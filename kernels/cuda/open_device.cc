#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/device_image.h"
#include "kernels/cuda/lt_library.h"

namespace lckv {
namespace {

// Facts up to the first thing that is missing: what lies behind it cannot be asked for.
absl::StatusOr<DeviceFacts> look_at(const CudaOpsOptions& options) {
  DeviceFacts facts{.device = options.device,
                    .architectures = LCKV_CUDA_ARCHITECTURES,
                    .required_bytes = options.required_bytes};
  if (cudaDriverGetVersion(&facts.driver_version) != cudaSuccess) facts.driver_version = 0;
  (void)cudaRuntimeGetVersion(&facts.runtime_version);
  const cudaError_t counted = cudaGetDeviceCount(&facts.num_devices);
  if (counted != cudaSuccess) {
    facts.num_devices = 0;
    const bool is_explained =
        counted == cudaErrorNoDevice || counted == cudaErrorInsufficientDriver;
    if (facts.driver_version == 0 || is_explained) return facts;
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA driver does not work: ", cudaGetErrorString(counted)));
  }
  cudaDeviceProp properties;
  const cudaError_t described = cudaGetDeviceProperties(&properties, options.device);
  if (described == cudaErrorInvalidDevice) return facts;
  if (described != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", options.device, " cannot be used: ", cudaGetErrorString(described)));
  }
  facts.name = properties.name;
  facts.capability = 10 * properties.major + properties.minor;
  const cudaError_t taken = cudaSetDevice(options.device);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  const cudaError_t asked =
      taken == cudaSuccess ? cudaMemGetInfo(&free_bytes, &total_bytes) : taken;
  if (asked != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", options.device, " (", facts.name,
                     ") cannot be used: ", cudaGetErrorString(asked)));
  }
  facts.free_bytes = free_bytes;
  facts.total_bytes = total_bytes;
  facts.has_kernels = has_kernels_for_this_device();
  return facts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> open_cuda_ops(const CudaOpsOptions& options) {
  if (options.head_dim > 0) {
    if (absl::Status status = check_head_dim(options.head_dim); !status.ok()) return status;
  }
  const auto facts = look_at(options);
  if (!facts.ok()) return facts.status();
  if (absl::Status status = check_device(*facts); !status.ok()) return status;
  if (!options.reproducible) {
    if (const auto lt = load_lt_library(); !lt.ok()) return lt.status();
  }
  CudaDeviceTraits traits{.capability = facts->capability};
  if (const cudaError_t error = cudaDeviceGetAttribute(
          &traits.num_multiprocessors, cudaDevAttrMultiProcessorCount, options.device);
      error != cudaSuccess) {
    return absl::InternalError(
        absl::StrCat("CUDA device ", options.device, ": ", cudaGetErrorString(error)));
  }
  return make_cuda_ops(options, traits);
}

}  // namespace lckv
