#include "kernels/cpu/elementwise.h"

#include <cmath>
#include <cstring>

#include "kernels/bfloat16.h"
#include "kernels/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/cpu/exponential-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;

void RmsNormRow(const float* x, const float* weight, float eps, int64_t size, float* out) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t even = size / lanes * lanes;
  auto sums = hn::Zero(d);
  auto others = hn::Zero(d);
  for (int64_t i = 0; i + 2 * lanes <= even; i += 2 * lanes) {
    const auto value = hn::LoadU(d, x + i);
    const auto other = hn::LoadU(d, x + i + lanes);
    sums = hn::MulAdd(value, value, sums);
    others = hn::MulAdd(other, other, others);
  }
  if (even / lanes % 2 != 0) {
    const auto value = hn::LoadU(d, x + even - lanes);
    sums = hn::MulAdd(value, value, sums);
  }
  sums = hn::Add(sums, others);
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (int64_t i = even; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0F / std::sqrt(sum / static_cast<float>(size) + eps);
  const auto factor = hn::Set(d, scale);
  for (int64_t i = 0; i < even; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), factor), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (int64_t i = even; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

void SiluMulRow(const float* gate, const float* up, int64_t size, float* out) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0F);
  // The exponential of -|g| cannot overflow: for negative g both sides of the fraction are scaled
  // by it.
  const auto silu_mul = [&](auto g, auto u) {
    const auto e = exponential(d, hn::Neg(hn::Abs(g)));
    const auto top = hn::IfThenElse(hn::Lt(g, hn::Zero(d)), hn::Mul(g, e), g);
    return hn::Mul(hn::Div(top, hn::Add(one, e)), u);
  };
  const int64_t even = size / lanes * lanes;
  for (int64_t i = 0; i < even; i += lanes) {
    hn::StoreU(silu_mul(hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, out + i);
  }
  for (int64_t i = even; i < size; ++i) {
    out[i] = hn::GetLane(silu_mul(hn::Set(d, gate[i]), hn::Set(d, up[i])));
  }
}

void RotateRow(float* x, const float* cos, const float* sin, int64_t half) {
  const hn::CappedTag<float, 8> d;  // heads of 16 have halves of 8
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < half; i += lanes) {
    const auto low = hn::LoadU(d, x + i);
    const auto high = hn::LoadU(d, x + half + i);
    const auto c = hn::LoadU(d, cos + i);
    const auto s = hn::LoadU(d, sin + i);
    hn::StoreU(hn::Sub(hn::Mul(low, c), hn::Mul(high, s)), d, x + i);
    hn::StoreU(hn::Add(hn::Mul(high, c), hn::Mul(low, s)), d, x + half + i);
  }
}

void FloatToBFloat16Row(const float* x, int64_t size, uint16_t* out) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t even = size / lanes * lanes;
  for (int64_t i = 0; i < even; i += lanes) {
    const auto value = hn::LoadU(d, x + i);
    const auto bits = hn::BitCast(du, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFU)), odd));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40U));
    const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
    hn::StoreU(hn::DemoteTo(narrow, hn::BitCast(hn::RebindToSigned<D>(),
                                                hn::IfThenElse(is_nan, quiet, rounded))),
               narrow, out + i);
  }
  for (int64_t i = even; i < size; ++i) out[i] = float_to_bfloat16(x[i]);
}

int VectorLanes() { return static_cast<int>(hn::Lanes(D())); }

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lckv {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(SiluMulRow);
HWY_EXPORT(RotateRow);
HWY_EXPORT(FloatToBFloat16Row);
HWY_EXPORT(VectorLanes);

void rms_norm_row(const float* x, const float* weight, float eps, int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNormRow)(x, weight, eps, size, out);
}

void silu_mul_row(const float* gate, const float* up, int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(SiluMulRow)(gate, up, size, out);
}

void rotate_row(float* x, const float* cos, const float* sin, int64_t half) {
  HWY_DYNAMIC_DISPATCH(RotateRow)(x, cos, sin, half);
}

void convert_row(const float* x, int64_t size, DType dtype, std::byte* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, x, static_cast<size_t>(size) * sizeof(float));
    return;
  }
  LCKV_CHECK(dtype == DType::kBFloat16);
  HWY_DYNAMIC_DISPATCH(FloatToBFloat16Row)(x, size, reinterpret_cast<uint16_t*>(out));
}

int vector_lanes() { return HWY_DYNAMIC_DISPATCH(VectorLanes)(); }

}  // namespace lckv
#endif  // HWY_ONCE
