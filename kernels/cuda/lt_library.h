// cuBLASLt, loaded when a device is opened. Linked at start it would take 94 KB of every thread's
// stack for its thread-local variables, which is more than some libraries' threads have, and 0.4 GB
// of address space in programs that only use the CPU.
#pragma once

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace lckv {

// Its functions, by their names without the prefix.
struct LtLibrary {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetStatusString) status_string = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_product = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_product = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_product = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_matrix = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_matrix = nullptr;
};

// It stays loaded. Errors: FailedPrecondition where it is not to be had, or lacks a function.
absl::StatusOr<LtLibrary> load_lt_library();

}  // namespace lckv
