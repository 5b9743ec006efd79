#include "kernels/cpu/products.h"

#include <omp.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/tile_product.h"

namespace lckv {
namespace {

// oneDNN gets whole multiples of this many rows, so that few primitives are made; our own product
// takes the rest. It also takes all small numbers of rows, where it reads weights faster.
constexpr int64_t kOnednnRows = 128;
constexpr int64_t kOnednnRowsMax = 512;

// Of one thread.
constexpr double kNanosecondsPerProduct = 0.05;
constexpr double kNanosecondsPerValue = 0.2;

class PanelWeight final : public PackedWeight {
 public:
  PanelWeight(int64_t n, int64_t k, size_t bytes) : n_(n), k_(k), memory_(bytes) {}
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override { return memory_.bytes(); }
  std::byte* panels() const { return memory_.data(); }

 private:
  const int64_t n_;
  const int64_t k_;
  const AnonymousMemory memory_;
};

RowKernels best_kernels(DType dtype) {
  if (dtype == DType::kFloat32) return float32_row_kernels();
  if (ask_for_amx()) return amx_bfloat16_row_kernels();
  return has_avx512_bf16() ? avx512_bfloat16_row_kernels() : wide_bfloat16_row_kernels();
}

}  // namespace

CpuProducts::CpuProducts(const CpuOpsOptions& options, CpuThreads& threads)
    : options_(options), threads_(threads), kernels_(best_kernels(options.dtype)) {
  if (!options.reproducible) onednn_ = std::make_unique<OnednnProducts>();
}

std::string CpuProducts::numerics() const {
  return std::string(onednn_ == nullptr ? "rows " : "onednn and rows ") + kernels_.name;
}

std::unique_ptr<PackedWeight> CpuProducts::pack(std::span<const WeightSource> sources) const {
  int64_t n = 0;
  for (const WeightSource& source : sources) n += source.n;
  const int64_t k = sources.front().k;
  auto weight = std::make_unique<PanelWeight>(n, k, panel_bytes(options_.dtype, n, k));
  pack_panels(sources, options_.dtype, weight->panels());
  return weight;
}

void CpuProducts::multiply(const PackedWeight& weight, const float* x, int64_t rows, float* y,
                           const float* bias, bool accumulate) {
  while (onednn_ != nullptr && rows >= kOnednnRows) {
    const OnednnProduct product{.dtype = options_.dtype,
                                .rows = std::min(rows / kOnednnRows * kOnednnRows, kOnednnRowsMax),
                                .n = weight.n(),
                                .k = weight.k(),
                                .panels = dynamic_cast<const PanelWeight&>(weight).panels(),
                                .y = y,
                                .bias = bias,
                                .accumulate = accumulate};
    if (!onednn_->can_multiply(product)) break;
    multiply_by_onednn(product, x);
    rows -= product.rows;
    x += product.rows * product.k;
    y += product.rows * product.n;
  }
  if (rows > 0) multiply_by_rows(weight, x, rows, y, bias, accumulate);
}

void CpuProducts::multiply_by_onednn(const OnednnProduct& product, const float* x) {
  OnednnProduct given = product;
  given.x = reinterpret_cast<const std::byte*>(x);
  if (product.dtype != DType::kFloat32) {
    const int64_t row_bytes = product.k * static_cast<int64_t>(dtype_bytes(product.dtype));
    std::byte* const input = scratch(input_, static_cast<size_t>(product.rows * row_bytes));
    threads_.share(
        product.rows, kNanosecondsPerValue * static_cast<double>(product.rows * product.k),
        [&](int64_t begin, int64_t end, int) {
          for (int64_t row = begin; row < end; ++row) {
            convert_row(x + row * product.k, product.k, product.dtype, input + row * row_bytes);
          }
        });
    given.x = input;
  }
  // oneDNN has threads of its own, as many as the calling thread's setting says.
  threads_.rest();
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads_.count());
  onednn_->multiply(given);
  omp_set_num_threads(before);
}

void CpuProducts::multiply_by_rows(const PackedWeight& weight, const float* x, int64_t rows,
                                   float* y, const float* bias, bool accumulate) {
  const auto& packed = dynamic_cast<const PanelWeight&>(weight);
  const DType dtype = options_.dtype;
  const ProductShape shape(kernels_, rows, packed.n(), packed.k());
  PanelProduct product{.panels = packed.panels(),
                       .x = reinterpret_cast<const std::byte*>(x),
                       .y = y,
                       .bias = bias,
                       .accumulate = accumulate};
  // One chunk of float32 rows is laid out as x is.
  const bool as_given = dtype == DType::kFloat32 && shape.chunks() == 1;
  if (!as_given) {
    std::byte* const input =
        scratch(input_, static_cast<size_t>(shape.x_values()) * dtype_bytes(dtype));
    threads_.share(shape.padded_rows, kNanosecondsPerValue * static_cast<double>(shape.x_values()),
                   [&](int64_t begin, int64_t end, int) {
                     lay_out_rows(shape, dtype, x, packed.k(), begin, end, input);
                   });
    product.x = input;
  }
  const int64_t sums_size = shape.sums_floats();
  auto* const sums = reinterpret_cast<float*>(
      scratch(sums_, static_cast<size_t>(sums_size * threads_.count()) * sizeof(float)));
  threads_.share(num_panels(packed.n()), shape.panels_together(),
                 kNanosecondsPerProduct * static_cast<double>(rows * packed.n() * packed.k()),
                 [&](int64_t begin, int64_t end, int thread) {
                   multiply_panels(kernels_, shape, product, begin, end, sums + thread * sums_size);
                 });
}

std::byte* CpuProducts::scratch(std::unique_ptr<AnonymousMemory>& memory, size_t bytes) {
  if (memory == nullptr || memory->bytes() < bytes) {
    memory.reset();
    memory = std::make_unique<AnonymousMemory>(bytes);
  }
  return memory->data();
}

}  // namespace lckv
