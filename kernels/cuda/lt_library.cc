#include "kernels/cuda/lt_library.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

// Looks functions up, and remembers the first that is missing.
class Lookup {
 public:
  explicit Lookup(void* library) : library_(library) {}

  template <class Function>
  void find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function == nullptr && missing_.empty()) missing_ = name;
  }
  const std::string& missing() const { return missing_; }

 private:
  void* const library_;
  std::string missing_;
};

}  // namespace

absl::StatusOr<LtLibrary> load_lt_library() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cuBLASLt cannot be loaded: ", dlerror()));
  }
  LtLibrary lt;
  Lookup lookup(library);
  lookup.find("cublasLtCreate", lt.create);
  lookup.find("cublasLtDestroy", lt.destroy);
  lookup.find("cublasLtGetStatusString", lt.status_string);
  lookup.find("cublasLtMatmul", lt.matmul);
  lookup.find("cublasLtMatmulAlgoGetHeuristic", lt.choose);
  lookup.find("cublasLtMatmulDescCreate", lt.create_product);
  lookup.find("cublasLtMatmulDescDestroy", lt.destroy_product);
  lookup.find("cublasLtMatmulDescSetAttribute", lt.set_product);
  lookup.find("cublasLtMatmulPreferenceCreate", lt.create_preference);
  lookup.find("cublasLtMatmulPreferenceDestroy", lt.destroy_preference);
  lookup.find("cublasLtMatmulPreferenceSetAttribute", lt.set_preference);
  lookup.find("cublasLtMatrixLayoutCreate", lt.create_matrix);
  lookup.find("cublasLtMatrixLayoutDestroy", lt.destroy_matrix);
  if (!lookup.missing().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(name, " has no ", lookup.missing()));
  }
  return lt;
}

}  // namespace lckv
