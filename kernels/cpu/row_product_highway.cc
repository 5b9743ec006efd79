// Blocks of rows for every instruction set, by Highway's dynamic dispatch.
#include "kernels/cpu/row_product.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_product_highway.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
constexpr int64_t kLanes = hn::MaxLanes(D());
// Sums of a block fill most of the registers: 6 rows by 4 vectors of 32, or by 2 of 16.
constexpr int64_t kVectors = kLanes == 16 ? 4 : 2;
constexpr int64_t kColumns = kVectors * kLanes;
constexpr int kMaxRows = 6;

struct Float32Panel {
  static constexpr int64_t kStep = 1;
  const float* weights;
  const float* x;
  explicit Float32Panel(const BlockProduct& block)
      : weights(reinterpret_cast<const float*>(block.weights)),
        x(reinterpret_cast<const float*>(block.x)) {}
  HWY_INLINE hn::Vec<D> load(int64_t step, int64_t, int64_t column) const {
    return hn::Load(D(), weights + step * kPanelColumns + column);
  }
  HWY_INLINE hn::Vec<D> spread(int64_t index) const { return hn::Set(D(), x[index]); }
};

// Pairs of k lie side by side: the even one in the low half of each 32-bit lane.
struct WidePanel {
  static constexpr int64_t kStep = 2;
  const uint32_t* weights;
  const uint16_t* x;
  explicit WidePanel(const BlockProduct& block)
      : weights(reinterpret_cast<const uint32_t*>(block.weights)),
        x(reinterpret_cast<const uint16_t*>(block.x)) {}
  HWY_INLINE hn::Vec<D> load(int64_t step, int64_t odd, int64_t column) const {
    const hn::RebindToUnsigned<D> du;
    const auto pair = hn::Load(du, weights + step * kPanelColumns + column);
    return hn::BitCast(
        D(), odd != 0 ? hn::And(pair, hn::Set(du, 0xFFFF0000U)) : hn::ShiftLeft<16>(pair));
  }
  HWY_INLINE hn::Vec<D> spread(int64_t index) const {
    const hn::RebindToUnsigned<D> du;
    return hn::BitCast(D(), hn::Set(du, static_cast<uint32_t>(x[index]) << 16));
  }
};

template <class Panel, int kRows>
void MultiplyRows(const BlockProduct& block) {
  const D d;
  const Panel panel(block);
  const auto* ahead = reinterpret_cast<const char*>(block.ahead);
  const int64_t steps = block.k / Panel::kStep;
  for (int64_t column = 0; column < kPanelColumns; column += kColumns) {
    hn::Vec<D> sums[kRows][kVectors];
    for (int row = 0; row < kRows; ++row) {
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[row][v] = block.first
                           ? hn::Zero(d)
                           : hn::Load(d, block.sums + row * kPanelColumns + column + v * kLanes);
      }
    }
    for (int64_t i = 0; i < steps; ++i) {
      if (column == 0) {
        for (int line = 0; line < block.lines_ahead; ++line) {
          hwy::Prefetch(ahead);
          ahead += 64;
        }
      }
      for (int64_t odd = 0; odd < Panel::kStep; ++odd) {
        hn::Vec<D> weights[kVectors];
        for (int64_t v = 0; v < kVectors; ++v) {
          weights[v] = panel.load(i, odd, column + v * kLanes);
        }
        for (int row = 0; row < kRows; ++row) {
          const auto x = panel.spread(row * block.x_stride + i * Panel::kStep + odd);
          for (int64_t v = 0; v < kVectors; ++v) {
            sums[row][v] = hn::MulAdd(x, weights[v], sums[row][v]);
          }
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int64_t v = 0; v < kVectors; ++v) {
        hn::Store(sums[row][v], d, block.sums + row * kPanelColumns + column + v * kLanes);
      }
    }
  }
}

template <class Panel>
const BlockKernel* by_rows() {
  static constexpr BlockKernel kByRows[kMaxRows] = {MultiplyRows<Panel, 1>, MultiplyRows<Panel, 2>,
                                                    MultiplyRows<Panel, 3>, MultiplyRows<Panel, 4>,
                                                    MultiplyRows<Panel, 5>, MultiplyRows<Panel, 6>};
  return kByRows;
}

RowKernels Float32Kernels() {
  return {.name = hwy::TargetName(HWY_TARGET),
          .dtype = DType::kFloat32,
          .row_unit = 1,
          .max_units = kMaxRows,
          .by_rows = by_rows<Float32Panel>()};
}

RowKernels WideKernels() {
  return {.name = hwy::TargetName(HWY_TARGET),
          .dtype = DType::kBFloat16,
          .row_unit = 1,
          .max_units = kMaxRows,
          .by_rows = by_rows<WidePanel>()};
}

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lckv {

HWY_EXPORT(Float32Kernels);
HWY_EXPORT(WideKernels);

RowKernels float32_row_kernels() { return HWY_DYNAMIC_DISPATCH(Float32Kernels)(); }
RowKernels wide_bfloat16_row_kernels() { return HWY_DYNAMIC_DISPATCH(WideKernels)(); }

}  // namespace lckv
#endif  // HWY_ONCE
