#include "kernels/cuda/products.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/parallel_copy.h"

namespace lckv {
namespace {

// [n, chunked_k], in the compute dtype: on the device, or in host memory and fetched from there.
class RowMajorWeight final : public PackedWeight {
 public:
  struct Shape {
    DType dtype;
    int64_t n;
    int64_t k;
    int64_t row_bytes() const {
      return chunked_k(dtype, k) * static_cast<int64_t>(dtype_bytes(dtype));
    }
    size_t bytes() const { return static_cast<size_t>(n * row_bytes()); }
  };
  RowMajorWeight(const Shape& shape, cudaStream_t stream)
      : shape_(shape), resident_(std::make_unique<CudaBuffer>(shape.bytes(), stream)) {}
  explicit RowMajorWeight(const Shape& shape)
      : shape_(shape),
        pinned_(std::make_unique<PinnedMemory>((shape.bytes() + kWeightAlignment - 1) /
                                               kWeightAlignment * kWeightAlignment)) {}
  int64_t n() const override { return shape_.n; }
  int64_t k() const override { return shape_.k; }
  size_t bytes() const override { return resident_ ? resident_->bytes() : pinned_->bytes(); }
  const Shape& shape() const { return shape_; }

  // Where it is kept.
  std::byte* data() { return resident_ ? resident_->data() : pinned_->data(); }
  // In a turn of the slot.
  void fetch(CudaWeightSlot& slot) {
    LCKV_CHECK(pinned_ != nullptr);
    slot_ = &slot;
    turn_ = slot.turn();
    at_ = slot.add(*pinned_);
  }
  // Where products called from here on read it.
  const std::byte* on_device() const {
    if (resident_ != nullptr) return resident_->data();
    LCKV_CHECK(slot_ != nullptr);
    return slot_->wait(turn_) + at_;
  }

 private:
  const Shape shape_;
  // One of them.
  const std::unique_ptr<CudaBuffer> resident_;
  const std::unique_ptr<PinnedMemory> pinned_;
  // Where the latter was fetched to last.
  CudaWeightSlot* slot_ = nullptr;
  uint64_t turn_ = 0;
  size_t at_ = 0;
};

RowMajorWeight::Shape stacked(DType dtype, std::span<const WeightSource> sources) {
  RowMajorWeight::Shape shape{.dtype = dtype, .n = 0, .k = sources.front().k};
  for (const WeightSource& source : sources) {
    LCKV_CHECK(source.k == shape.k);
    shape.n += source.n;
  }
  return shape;
}

}  // namespace

const std::byte* rows_of(const PackedWeight& weight) {
  return dynamic_cast<const RowMajorWeight&>(weight).on_device();
}

CudaProducts::CudaProducts(DType dtype, bool reproducible, UploadRing& uploads, cudaStream_t stream)
    : dtype_(dtype), uploads_(uploads), stream_(stream) {
  if (!reproducible) lt_ = std::make_unique<LtProducts>(stream);
}

std::unique_ptr<PackedWeight> CudaProducts::pack(std::span<const WeightSource> sources) {
  auto weight = std::make_unique<RowMajorWeight>(stacked(dtype_, sources), stream_);
  lay_out(sources, weight->data());
  return weight;
}

std::unique_ptr<PackedWeight> CudaProducts::pack_on_host(std::span<const WeightSource> sources) {
  auto weight = std::make_unique<RowMajorWeight>(stacked(dtype_, sources));
  lay_out(sources, weight->data());
  return weight;
}

void CudaProducts::lay_out(std::span<const WeightSource> sources, std::byte* to) {
  for (const WeightSource& source : sources) {
    const auto row_bytes = static_cast<size_t>(source.k) * dtype_bytes(source.dtype);
    const size_t packed_row_bytes = chunked_k(dtype_, source.k) * dtype_bytes(dtype_);
    const auto rows_at_once = static_cast<int64_t>(uploads_.max_bytes() / row_bytes);
    LCKV_CHECK(rows_at_once > 0);
    for (int64_t row = 0; row < source.n; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, source.n - row);
      const size_t bytes = static_cast<size_t>(rows) * row_bytes;
      copy_in_parallel(static_cast<const std::byte*>(source.data) + row * row_bytes,
                       uploads_.take(bytes), bytes);
      lay_out_rows({.x = uploads_.send(),
                    .from = source.dtype,
                    .to = dtype_,
                    .rows = rows,
                    .k = source.k,
                    .out = to},
                   stream_);
      to += rows * packed_row_bytes;
    }
  }
}

std::unique_ptr<WeightSlot> CudaProducts::allocate_slot(size_t bytes) {
  if (copies_ == nullptr) copies_ = std::make_unique<Stream>();
  return std::make_unique<CudaWeightSlot>(bytes, stream_, *copies_);
}

void CudaProducts::fetch(std::span<PackedWeight* const> weights, WeightSlot& slot) {
  auto& to = dynamic_cast<CudaWeightSlot&>(slot);
  to.begin_turn();
  for (PackedWeight* const weight : weights) dynamic_cast<RowMajorWeight&>(*weight).fetch(to);
  to.end_turn();
}

void CudaProducts::multiply(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
                            const float* bias, bool accumulate) {
  if (rows == 0) return;
  const auto& packed = dynamic_cast<const RowMajorWeight&>(weight);
  const ProductArgs args{.dtype = dtype_,
                         .weights = packed.on_device(),
                         .x = x,
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
