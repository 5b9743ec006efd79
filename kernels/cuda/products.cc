#include "kernels/cuda/products.h"

#include <algorithm>
#include <cstring>

#include "kernels/check.h"

namespace lckv {
namespace {

// [n, chunked_k], in the compute dtype.
class RowMajorWeight final : public PackedWeight {
 public:
  RowMajorWeight(DType dtype, int64_t n, int64_t k, cudaStream_t stream)
      : n_(n),
        k_(k),
        row_bytes_(chunked_k(dtype, k) * static_cast<int64_t>(dtype_bytes(dtype))),
        memory_(static_cast<size_t>(n * row_bytes_), stream) {}
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override { return memory_.bytes(); }
  int64_t row_bytes() const { return row_bytes_; }
  std::byte* data() { return memory_.data(); }
  const std::byte* data() const { return const_cast<CudaBuffer&>(memory_).data(); }

 private:
  const int64_t n_;
  const int64_t k_;
  const int64_t row_bytes_;
  CudaBuffer memory_;
};

}  // namespace

const std::byte* rows_of(const PackedWeight& weight) {
  return dynamic_cast<const RowMajorWeight&>(weight).data();
}

CudaProducts::CudaProducts(DType dtype, bool reproducible, UploadRing& uploads, cudaStream_t stream)
    : dtype_(dtype), uploads_(uploads), stream_(stream) {
  if (!reproducible) lt_ = std::make_unique<LtProducts>(stream);
}

std::unique_ptr<PackedWeight> CudaProducts::pack(std::span<const WeightSource> sources) {
  int64_t n = 0;
  for (const WeightSource& source : sources) n += source.n;
  const int64_t k = sources.front().k;
  auto weight = std::make_unique<RowMajorWeight>(dtype_, n, k, stream_);
  std::byte* to = weight->data();
  for (const WeightSource& source : sources) {
    LCKV_CHECK(source.k == k);
    const auto row_bytes = static_cast<size_t>(k) * dtype_bytes(source.dtype);
    const auto rows_at_once = static_cast<int64_t>(uploads_.max_bytes() / row_bytes);
    LCKV_CHECK(rows_at_once > 0);
    for (int64_t row = 0; row < source.n; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, source.n - row);
      const size_t bytes = static_cast<size_t>(rows) * row_bytes;
      std::memcpy(uploads_.take(bytes),
                  static_cast<const std::byte*>(source.data) + row * row_bytes, bytes);
      lay_out_rows({.x = uploads_.send(),
                    .from = source.dtype,
                    .to = dtype_,
                    .rows = rows,
                    .k = k,
                    .out = to},
                   stream_);
      to += rows * weight->row_bytes();
    }
  }
  return weight;
}

const std::byte* CudaProducts::input(const float* x, int64_t rows, int64_t k) {
  const int64_t padded_k = chunked_k(dtype_, k);
  if (dtype_ == DType::kFloat32 && padded_k == k) return reinterpret_cast<const std::byte*>(x);
  const size_t bytes = static_cast<size_t>(rows * padded_k) * dtype_bytes(dtype_);
  grow(input_, bytes, stream_);
  lay_out_rows({.x = reinterpret_cast<const std::byte*>(x),
                .from = DType::kFloat32,
                .to = dtype_,
                .rows = rows,
                .k = k,
                .out = input_->data()},
               stream_);
  return input_->data();
}

void CudaProducts::multiply(const PackedWeight& weight, const float* x, int64_t rows, float* y,
                            const float* bias, bool accumulate) {
  if (rows == 0) return;
  const auto& packed = dynamic_cast<const RowMajorWeight&>(weight);
  const ProductArgs args{.dtype = dtype_,
                         .weights = packed.data(),
                         .x = input(x, rows, packed.k()),
                         .rows = rows,
                         .n = packed.n(),
                         .k = chunked_k(dtype_, packed.k()),
                         .y = y,
                         .bias = bias,
                         .accumulate = accumulate};
  if (lt_ != nullptr && lt_->multiply(args)) return;
  multiply_rows(args, stream_);
}

}  // namespace lckv
