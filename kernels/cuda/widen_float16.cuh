// One instruction where float16_to_float is several: products do little else. For the host,
// tests/kernels/emulated_cuda has a header of the same path.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lckv {

__device__ inline float widen_float16(uint16_t bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}

}  // namespace lckv
