// The panel product for every instruction set, by Highway's dynamic dispatch.
#include "kernels/cpu/row_product.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_product_highway.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr int64_t kVectors = kPanelColumns / kLanes;

struct Float32Panel {
  static constexpr int64_t kStep = 1;
  const float* weights;
  void load(int64_t i, int64_t, hn::Vec<D> (&out)[kVectors]) const {
    for (int64_t v = 0; v < kVectors; ++v) {
      out[v] = hn::Load(D(), weights + i * kPanelColumns + v * kLanes);
    }
  }
  static float x(const std::byte* rows, int64_t index) {
    return reinterpret_cast<const float*>(rows)[index];
  }
};

// Pairs of k lie side by side: the even one in the low half of each 32-bit lane.
struct WidePanel {
  static constexpr int64_t kStep = 2;
  const uint16_t* weights;
  void load(int64_t i, int64_t odd, hn::Vec<D> (&out)[kVectors]) const {
    const hn::RebindToUnsigned<D> du;
    const auto* const pairs = reinterpret_cast<const uint32_t*>(weights) + i * kPanelColumns;
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto pair = hn::Load(du, pairs + v * kLanes);
      const auto high = hn::And(pair, hn::Set(du, 0xFFFF0000U));
      out[v] = hn::BitCast(D(), odd != 0 ? high : hn::ShiftLeft<16>(pair));
    }
  }
  static float x(const std::byte* rows, int64_t index) {
    const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(rows)[index])
                          << 16;
    float value;
    hwy::CopySameSize(&bits, &value);
    return value;
  }
};

template <int kRows, class Panel>
HWY_INLINE void multiply_rows(const PanelProduct& product, const Panel& panel, int64_t first_row,
                              float (&out)[kRows][kPanelColumns]) {
  const D d;
  hn::Vec<D> sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row) {
    for (int64_t v = 0; v < kVectors; ++v) sums[row][v] = hn::Zero(d);
  }
  hn::Vec<D> weights[kVectors];
  for (int64_t i = 0; i < product.k / Panel::kStep; ++i) {
    for (int64_t odd = 0; odd < Panel::kStep; ++odd) {
      panel.load(i, odd, weights);
      for (int row = 0; row < kRows; ++row) {
        const auto x = hn::Set(
            d, Panel::x(product.x, (first_row + row) * product.k + i * Panel::kStep + odd));
        for (int64_t v = 0; v < kVectors; ++v) {
          sums[row][v] = hn::MulAdd(x, weights[v], sums[row][v]);
        }
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int64_t v = 0; v < kVectors; ++v) hn::StoreU(sums[row][v], d, out[row] + v * kLanes);
  }
}

template <int kRows, class Panel>
void multiply_block(const PanelProduct& product, const Panel& panel, int64_t first_row,
                    int64_t column) {
  float out[kRows][kPanelColumns];
  multiply_rows<kRows>(product, panel, first_row, out);
  const int64_t columns = HWY_MIN(kPanelColumns, product.n - column);
  for (int row = 0; row < kRows; ++row) {
    float* const y = product.y + (first_row + row) * product.n + column;
    for (int64_t i = 0; i < columns; ++i) {
      const float sum = out[row][i] + (product.bias != nullptr ? product.bias[column + i] : 0.0F);
      y[i] = product.accumulate ? y[i] + sum : sum;
    }
  }
}

template <class Panel>
void multiply_panels(const PanelProduct& product, int64_t begin, int64_t end,
                     int64_t panel_values) {
  constexpr int kRows = 6;
  for (int64_t p = begin; p < end; ++p) {
    using Value = std::remove_const_t<std::remove_pointer_t<decltype(Panel::weights)>>;
    const Panel panel{reinterpret_cast<const Value*>(product.panels) + p * panel_values};
    int64_t row = 0;
    for (; row + kRows <= product.rows; row += kRows) {
      multiply_block<kRows>(product, panel, row, p * kPanelColumns);
    }
    for (; row < product.rows; ++row) multiply_block<1>(product, panel, row, p * kPanelColumns);
  }
}

void Float32(const PanelProduct& product, int64_t begin, int64_t end) {
  multiply_panels<Float32Panel>(product, begin, end, product.k * kPanelColumns);
}

void BFloat16Wide(const PanelProduct& product, int64_t begin, int64_t end) {
  multiply_panels<WidePanel>(product, begin, end, product.k * kPanelColumns);
}

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lckv {

HWY_EXPORT(Float32);
HWY_EXPORT(BFloat16Wide);

void multiply_float32(const PanelProduct& product, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(Float32)(product, begin, end);
}

void multiply_bfloat16_wide(const PanelProduct& product, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(BFloat16Wide)(product, begin, end);
}

}  // namespace lckv
#endif  // HWY_ONCE
