#include "kernels/cuda/lt_product.h"

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/lt_library.h"
#include "kernels/device_failure.h"

namespace lckv {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// cuBLASLt's functions, each answer looked at.
class CheckedLt {
 public:
  CheckedLt() {
    auto loaded = load_lt_library();
    if (!loaded.ok()) end_on_device_failure("cuBLASLt", "opening it", loaded.status().message());
    functions_ = *loaded;
  }
  const LtLibrary* operator->() const { return &functions_; }

  void check(cublasStatus_t status, const char* operation) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    end_on_device_failure("cuBLASLt", operation, functions_.status_string(status));
  }
  template <class Value>
  void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
           const Value& value) const {
    check(functions_.set_product(product, attribute, &value, sizeof(value)),
          "describing a product");
  }
  template <class Value>
  void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
           const Value& value) const {
    check(functions_.set_preference(preference, attribute, &value, sizeof(value)),
          "describing a preference");
  }

 private:
  LtLibrary functions_;
};

// Of a pointer, as far as kernels care.
uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address == 0 ? 256U : 1U << std::min(8, std::countr_zero(address));
}

cudaDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kFloat32:
      break;
  }
  return CUDA_R_32F;
}

// cuBLASLt's matrices lie column by column: y^T [n, rows] = W [n, k] * x^T [k, rows], where what it
// sees of W's memory is W^T.
class Descriptions {
 public:
  Descriptions(const CheckedLt& lt, const ProductArgs& args) : lt_(lt) {
    const cudaDataType type = type_of(args.dtype);
    lt_.check(lt_->create_product(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              "describing a product");
    lt_.set(product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (args.bias != nullptr) {
      lt_.set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      lt_.set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
    }
    weights = matrix(type, args.k, args.n);
    x = matrix(type, args.k, args.rows);
    y = matrix(CUDA_R_32F, args.n, args.rows);
  }
  ~Descriptions() {
    lt_->destroy_matrix(y);
    lt_->destroy_matrix(x);
    lt_->destroy_matrix(weights);
    lt_->destroy_product(product);
  }
  Descriptions(const Descriptions&) = delete;
  Descriptions& operator=(const Descriptions&) = delete;

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weights = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;

 private:
  cublasLtMatrixLayout_t matrix(cudaDataType type, int64_t rows, int64_t columns) const {
    cublasLtMatrixLayout_t made = nullptr;
    lt_.check(lt_->create_matrix(&made, type, rows, columns, rows), "describing a matrix");
    return made;
  }

  const CheckedLt& lt_;
};

}  // namespace

class LtProducts::Impl {
 public:
  explicit Impl(cudaStream_t stream) : stream_(stream) {
    lt_.check(lt_->create(&handle_), "opening cuBLASLt");
    check_cuda(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating cuBLASLt's workspace");
  }
  ~Impl() {
    check_cuda(cudaFree(workspace_), "freeing device memory");
    lt_->destroy(handle_);
  }

  bool multiply(const ProductArgs& args) {
    const Descriptions descriptions(lt_, args);
    const auto& algorithm = algorithm_of(args, descriptions);
    if (!algorithm) return false;
    const float one = 1.0F;
    const float kept = args.accumulate ? 1.0F : 0.0F;
    lt_.check(lt_->matmul(handle_, descriptions.product, &one, args.weights, descriptions.weights,
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
    lt_.check(lt_->create_preference(&preference), "describing a preference");
    lt_.set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    lt_.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(args.weights));
    lt_.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(args.x));
    lt_.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(args.y));
    lt_.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(args.y));
    cublasLtMatmulHeuristicResult_t result = {};
    int num_found = 0;
    const cublasStatus_t status =
        lt_->choose(handle_, descriptions.product, descriptions.weights, descriptions.x,
                    descriptions.y, descriptions.y, preference, 1, &result, &num_found);
    lt_->destroy_preference(preference);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
    lt_.check(status, "choosing an algorithm");
    if (num_found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    return result.algo;
  }

  const cudaStream_t stream_;
  const CheckedLt lt_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, std::optional<cublasLtMatmulAlgo_t>> algorithms_;
};

LtProducts::LtProducts(cudaStream_t stream) : impl_(std::make_unique<Impl>(stream)) {}
LtProducts::~LtProducts() = default;

bool LtProducts::multiply(const ProductArgs& args) { return impl_->multiply(args); }

}  // namespace lckv
