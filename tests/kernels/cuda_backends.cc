// The CUDA backend on this machine's first device.
#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/backends.h"

namespace lckv {

std::vector<Backend> all_backends() {
  const auto device = open_cuda_ops({});
  std::vector<Backend> out;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const bool reproducible : {false, true}) {
      out.push_back({.name = std::string(reproducible ? "cuda_reproducible_" : "cuda_free_") +
                             dtype_name(dtype),
                     .dtype = dtype,
                     .reproducible = reproducible,
                     .missing = device.ok() ? "" : std::string(device.status().message()),
                     .open_with = [dtype, reproducible](int) {
                       return *open_cuda_ops({.dtype = dtype, .reproducible = reproducible});
                     }});
    }
  }
  return out;
}

}  // namespace lckv
