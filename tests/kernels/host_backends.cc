#include "kernels/cpu/cpu_ops.h"
#include "kernels/reference_ops.h"
#include "tests/kernels/backends.h"

namespace lckv {

std::vector<Backend> all_backends() {
  std::vector<Backend> out;
  for (const DType dtype : kDTypes) {
    const std::string type = dtype_name(dtype);
    out.push_back(
        {.name = "reference_" + type, .dtype = dtype, .max_models = 3, .open_with = [dtype](int) {
           return open_reference_ops(dtype);
         }});
    if (dtype == DType::kFloat16) continue;  // not on the CPU
    for (const bool reproducible : {false, true}) {
      out.push_back({.name = (reproducible ? "cpu_reproducible_" : "cpu_free_") + type,
                     .dtype = dtype,
                     .reproducible = reproducible,
                     .open_with = [dtype, reproducible](int threads) {
                       return open_cpu_ops(
                           {.dtype = dtype, .threads = threads, .reproducible = reproducible});
                     }});
    }
  }
  return out;
}

}  // namespace lckv
