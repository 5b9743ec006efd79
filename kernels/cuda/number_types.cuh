// Number formats of weights, keys and values as types, for kernels that are the same in each: those
// of 16 bits are held as their bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/cuda/widen_float16.cuh"
#include "kernels/dtype.h"
#include "kernels/float16.h"

namespace lckv {

struct BFloat16 {
  static constexpr uint16_t kExponent = 0x7F80;  // all ones: infinite, or NaN
  uint16_t bits;
};

struct Float16 {
  static constexpr uint16_t kExponent = 0x7C00;
  uint16_t bits;
};

__device__ inline float widened(float value) { return value; }
__device__ inline float widened(BFloat16 value) { return bfloat16_to_float(value.bits); }
__device__ inline float widened(Float16 value) { return widen_float16(value.bits); }

template <class Value>
__device__ Value narrowed(float value);
template <>
__device__ inline float narrowed<float>(float value) {
  return value;
}
template <>
__device__ inline BFloat16 narrowed<BFloat16>(float value) {
  return {float_to_bfloat16(value)};
}
template <>
__device__ inline Float16 narrowed<Float16>(float value) {
  return {float_to_float16(value)};
}

// Calls `run` with a value of the format's type.
template <class Run>
auto with_values(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kBFloat16:
      return run(BFloat16{});
    case DType::kFloat16:
      return run(Float16{});
    case DType::kFloat32:
      break;
  }
  return run(float{});
}

}  // namespace lckv
