// Opens the CPU backends.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace lckv {

struct CpuOpsOptions {
  DType dtype = DType::kFloat32;  // float32 or bfloat16
  int threads = 0;                // of the OpenMP pool; 0: one per core this process may use
  bool reproducible = false;
};

// oneDNN, Highway and our own products. Caps oneDNN's instruction set where AMX is advertised but
// unusable.
std::unique_ptr<Ops> open_cpu_ops(const CpuOpsOptions& options);

}  // namespace lckv
