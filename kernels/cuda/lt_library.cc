#include "kernels/cuda/lt_library.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/shared_library.h"

namespace lckv {

absl::StatusOr<LtLibrary> load_lt_library() {
  auto library = SharedLibrary::load(absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR));
  if (!library.ok()) return library.status();
  LtLibrary lt;
  library->find("cublasLtCreate", lt.create);
  library->find("cublasLtDestroy", lt.destroy);
  library->find("cublasLtGetStatusString", lt.status_string);
  library->find("cublasLtMatmul", lt.matmul);
  library->find("cublasLtMatmulAlgoGetHeuristic", lt.choose);
  library->find("cublasLtMatmulDescCreate", lt.create_product);
  library->find("cublasLtMatmulDescDestroy", lt.destroy_product);
  library->find("cublasLtMatmulDescSetAttribute", lt.set_product);
  library->find("cublasLtMatmulPreferenceCreate", lt.create_preference);
  library->find("cublasLtMatmulPreferenceDestroy", lt.destroy_preference);
  library->find("cublasLtMatmulPreferenceSetAttribute", lt.set_preference);
  library->find("cublasLtMatrixLayoutCreate", lt.create_matrix);
  library->find("cublasLtMatrixLayoutDestroy", lt.destroy_matrix);
  if (absl::Status status = library->complete(); !status.ok()) return status;
  return lt;
}

}  // namespace lckv
