// Reads one number of a checkpoint's matrix, whichever format it was saved in.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/ops.h"

namespace lckv {

// IEEE 754 binary16, exactly.
constexpr float float16_to_float(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000U) << 16;
  const uint32_t exponent = (value >> 10) & 0x1FU;
  const uint32_t mantissa = value & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 0x1FU ? 0xFFU : exponent + 112U;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

constexpr float weight_value(const WeightSource& source, int64_t index) {
  switch (source.dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(source.data)[index];
    case DType::kBFloat16:
      return bfloat16_to_float(static_cast<const uint16_t*>(source.data)[index]);
    case DType::kFloat16:
      return float16_to_float(static_cast<const uint16_t*>(source.data)[index]);
  }
  return 0.0F;
}

}  // namespace lckv
