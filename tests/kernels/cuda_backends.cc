// The CUDA backend on this machine's first device.
#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/backends.h"

namespace lckv {

namespace {

std::vector<Backend> look_for_backends() {
  std::vector<Backend> out;
  for (const bool reproducible : {false, true}) {
    // Each for itself: cuBLASLt is only the free products'.
    const auto device = open_cuda_ops({.reproducible = reproducible});
    for (const DType dtype : kDTypes) {
      out.push_back({.name = std::string(reproducible ? "cuda_reproducible_" : "cuda_free_") +
                             dtype_name(dtype),
                     .dtype = dtype,
                     .reproducible = reproducible,
                     .rounds_attention = dtype != DType::kFloat32,
                     .missing = device.ok() ? "" : std::string(device.status().message()),
                     .open_with =
                         [dtype, reproducible](int) {
                           return *open_cuda_ops({.dtype = dtype, .reproducible = reproducible});
                         },
                     .open_with_shares =
                         [dtype, reproducible](size_t bytes) {
                           return *open_cuda_ops({.dtype = dtype,
                                                  .reproducible = reproducible,
                                                  .attention_share_bytes = bytes});
                         }});
    }
  }
  return out;
}

}  // namespace

// Every suite asks, and opening a device takes long under a sanitizer.
std::vector<Backend> all_backends() {
  static const std::vector<Backend> all = look_for_backends();
  return all;
}

}  // namespace lckv
