#include "kernels/cuda/lt_product.h"

#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <tuple>

#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

void check_lt(cublasStatus_t status, const char* operation) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "cuBLASLt error in %s: %s\n", operation, cublasLtGetStatusString(status));
  std::_Exit(1);
}

// Of a pointer, as far as kernels care.
uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address == 0 ? 256U : 1U << std::min(8, std::countr_zero(address));
}

template <class Value>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
         const Value& value) {
  check_lt(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)),
           "describing a product");
}

template <class Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const Value& value) {
  check_lt(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
           "describing a preference");
}

// cuBLASLt's matrices lie column by column: y^T [n, rows] = W [n, k] * x^T [k, rows], where what it
// sees of W's memory is W^T.
class Descriptions {
 public:
  explicit Descriptions(const ProductArgs& args) {
    const cudaDataType type = args.dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
    check_lt(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
    set(product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (args.bias != nullptr) {
      set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
    }
    check_lt(cublasLtMatrixLayoutCreate(&weights, type, args.k, args.n, args.k),
             "describing a matrix");
    check_lt(cublasLtMatrixLayoutCreate(&x, type, args.k, args.rows, args.k),
             "describing a matrix");
    check_lt(cublasLtMatrixLayoutCreate(&y, CUDA_R_32F, args.n, args.rows, args.n),
             "describing a matrix");
  }
  ~Descriptions() {
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(weights);
    cublasLtMatmulDescDestroy(product);
  }
  Descriptions(const Descriptions&) = delete;
  Descriptions& operator=(const Descriptions&) = delete;

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weights = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;
};

}  // namespace

class LtProducts::Impl {
 public:
  explicit Impl(cudaStream_t stream) : stream_(stream) {
    check_lt(cublasLtCreate(&lt_), "opening cuBLASLt");
    check_cuda(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating cuBLASLt's workspace");
  }
  ~Impl() {
    check_cuda(cudaFree(workspace_), "freeing device memory");
    cublasLtDestroy(lt_);
  }

  bool multiply(const ProductArgs& args) {
    const Descriptions descriptions(args);
    const auto& algorithm = algorithm_of(args, descriptions);
    if (!algorithm) return false;
    const float one = 1.0F;
    const float kept = args.accumulate ? 1.0F : 0.0F;
    check_lt(cublasLtMatmul(lt_, descriptions.product, &one, args.weights, descriptions.weights,
                            args.x, descriptions.x, &kept, args.y, descriptions.y, args.y,
                            descriptions.y, &*algorithm, workspace_, kWorkspaceBytes, stream_),
             "matmul");
    return true;
  }

 private:
  // What the choice depends on: rows, n, k, type, whether there is a bias, alignments of x and y.
  using Key = std::tuple<int64_t, int64_t, int64_t, DType, bool, uint32_t, uint32_t>;

  const std::optional<cublasLtMatmulAlgo_t>& algorithm_of(const ProductArgs& args,
                                                          const Descriptions& descriptions) {
    const Key key{
        args.rows,           args.n, args.k, args.dtype, args.bias != nullptr, alignment_of(args.x),
        alignment_of(args.y)};
    const auto [found, is_new] = algorithms_.try_emplace(key);
    if (is_new) found->second = choose(args, descriptions);
    return found->second;
  }

  std::optional<cublasLtMatmulAlgo_t> choose(const ProductArgs& args,
                                             const Descriptions& descriptions) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check_lt(cublasLtMatmulPreferenceCreate(&preference), "describing a preference");
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(args.weights));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(args.x));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(args.y));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(args.y));
    cublasLtMatmulHeuristicResult_t result = {};
    int num_found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        lt_, descriptions.product, descriptions.weights, descriptions.x, descriptions.y,
        descriptions.y, preference, 1, &result, &num_found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || num_found == 0) return std::nullopt;
    check_lt(status, "choosing an algorithm");
    return result.algo;
  }

  const cudaStream_t stream_;
  cublasLtHandle_t lt_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, std::optional<cublasLtMatmulAlgo_t>> algorithms_;
};

LtProducts::LtProducts(cudaStream_t stream) : impl_(std::make_unique<Impl>(stream)) {}
LtProducts::~LtProducts() = default;

bool LtProducts::multiply(const ProductArgs& args) { return impl_->multiply(args); }

}  // namespace lckv
