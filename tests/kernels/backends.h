// The backends that each test body runs over, and random inputs.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/bfloat16.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference_ops.h"

namespace lckv {

struct Backend {
  std::string name;
  DType dtype;
  bool reference = false;
  bool reproducible = false;

  std::unique_ptr<Ops> open(int threads = 0) const {
    if (reference) return open_reference_ops(dtype);
    return open_cpu_ops({.dtype = dtype, .threads = threads, .reproducible = reproducible});
  }
  // Of one rounding to the compute dtype.
  double epsilon() const { return dtype == DType::kFloat32 ? 0x1p-23 : 0x1p-8; }
};

inline std::vector<Backend> all_backends() {
  std::vector<Backend> out;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const std::string type = dtype_name(dtype);
    out.push_back({.name = "reference_" + type, .dtype = dtype, .reference = true});
    out.push_back({.name = "cpu_free_" + type, .dtype = dtype});
    out.push_back({.name = "cpu_reproducible_" + type, .dtype = dtype, .reproducible = true});
  }
  return out;
}

inline std::vector<Backend> reproducible_backends() {
  std::vector<Backend> out;
  for (const Backend& backend : all_backends()) {
    if (backend.reproducible) out.push_back(backend);
  }
  return out;
}

inline std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return info.param.name;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  std::vector<float> floats(size_t count, float scale = 1.0F) {
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> out(count);
    for (float& value : out) value = normal(engine_);
    return out;
  }
  int32_t below(int32_t bound) { return static_cast<int32_t>(engine_() % bound); }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

inline float rounded(float value, DType dtype) {
  return dtype == DType::kFloat32 ? value : bfloat16_to_float(float_to_bfloat16(value));
}

inline bool same_bytes(const float* left, const float* right, size_t count) {
  return std::memcmp(left, right, count * sizeof(float)) == 0;
}

}  // namespace lckv
