// Number formats of weights and of keys and values. Activations are always float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lckv {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr size_t dtype_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
  }
  return "unknown";
}

}  // namespace lckv
