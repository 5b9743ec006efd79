// The CUDA backend's sources over emulated_cuda/cuda_runtime.h.
#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/backends.h"

namespace lckv {

std::vector<Backend> all_backends() {
  std::vector<Backend> out;
  for (const DType dtype : kDTypes) {
    for (const bool reproducible : {false, true}) {
      // What differs between the modes does so in bfloat16 too.
      if (dtype == DType::kFloat16 && !reproducible) continue;
      out.push_back(
          {.name = std::string(reproducible ? "cuda_reproducible_" : "cuda_free_") +
                   dtype_name(dtype) + "_emulated",
           .dtype = dtype,
           .reproducible = reproducible,
           .rounds_attention = dtype != DType::kFloat32,
           .max_models = reproducible ? 1U : 0U,
           .open_with =
               [dtype, reproducible](int) {
                 return make_cuda_ops({.dtype = dtype, .reproducible = reproducible},
                                      {.num_multiprocessors = 2});
               },
           .open_with_shares =
               [dtype, reproducible](size_t bytes) {
                 return make_cuda_ops(
                     {.dtype = dtype, .reproducible = reproducible, .attention_share_bytes = bytes},
                     {.num_multiprocessors = 2});
               }});
    }
  }
  return out;
}

}  // namespace lckv
