// Reads one number of a checkpoint's matrix, whichever format it was saved in, and rounds to those
// that backends compute with.
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/float16.h"
#include "kernels/ops.h"

namespace lckv {

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

constexpr float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return value;
    case DType::kBFloat16:
      return bfloat16_to_float(float_to_bfloat16(value));
    case DType::kFloat16:
      return float16_to_float(float_to_float16(value));
  }
  return value;
}

}  // namespace lckv
