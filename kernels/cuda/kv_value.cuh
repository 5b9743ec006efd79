// A key's or value's number formats: bfloat16 is held as its bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bfloat16.h"

namespace lckv {

__device__ inline float widened(float value) { return value; }
__device__ inline float widened(uint16_t value) { return bfloat16_to_float(value); }

template <class Value>
__device__ Value narrowed(float value);
template <>
__device__ inline float narrowed<float>(float value) {
  return value;
}
template <>
__device__ inline uint16_t narrowed<uint16_t>(float value) {
  return float_to_bfloat16(value);
}

}  // namespace lckv
