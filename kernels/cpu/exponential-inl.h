// exp(x) for x <= 0, to be included once per instruction set: x = n ln 2 + r with |r| <= ln 2 / 2,
// a polynomial in r, and n added to the exponent. Relative error below 2e-7; zero below -87, -inf
// included.
#if defined(LCKV_EXPONENTIAL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LCKV_EXPONENTIAL_INL_H
#undef LCKV_EXPONENTIAL_INL_H
#else
#define LCKV_EXPONENTIAL_INL_H
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lckv {
namespace HWY_NAMESPACE {

template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V exponential(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> di;
  const auto set = [&](float value) { return hn::Set(d, value); };
  const auto clamped = hn::Max(x, set(-87.0F));
  const V n = hn::Round(hn::Mul(clamped, set(1.44269504F)));
  // ln 2 in two parts: n times the first one is exact.
  const V r = hn::NegMulAdd(n, set(-2.12194440e-4F), hn::NegMulAdd(n, set(0.693359375F), clamped));
  // The Taylor series; its first dropped term is below half a unit in the last place at |r| = ln 2
  // / 2.
  V p = set(1.0F / 5040.0F);
  p = hn::MulAdd(p, r, set(1.0F / 720.0F));
  p = hn::MulAdd(p, r, set(1.0F / 120.0F));
  p = hn::MulAdd(p, r, set(1.0F / 24.0F));
  p = hn::MulAdd(p, r, set(1.0F / 6.0F));
  p = hn::MulAdd(p, r, set(0.5F));
  p = hn::MulAdd(p, r, set(1.0F));
  p = hn::MulAdd(p, r, set(1.0F));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  const V result = hn::Mul(p, hn::BitCast(d, power));
  // NaN is not below the limit and stays.
  return hn::IfThenElse(hn::Lt(x, set(-87.0F)), hn::Zero(d),
                        hn::IfThenElse(hn::IsNaN(x), x, result));
}

}  // namespace HWY_NAMESPACE
}  // namespace lckv
HWY_AFTER_NAMESPACE();

#endif
