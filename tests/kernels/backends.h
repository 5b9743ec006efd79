// The backends that each test body runs over, and random inputs.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/weight_values.h"

namespace lckv {

struct Backend {
  std::string name;
  DType dtype = DType::kFloat32;
  bool reproducible = false;
  // Attention rounds queries and weights to the compute dtype (AttentionArgs).
  bool rounds_attention = false;
  size_t max_models = SIZE_MAX;  // that it runs in tests of whole models: slow ones run few
  // What this machine lacks to run it; empty: nothing.
  std::string missing;
  // With so many threads, where it has any; 0: its own choice.
  std::function<std::unique_ptr<Ops>(int threads)> open_with;
  // With so many bytes for the shares of split histories; null: it keeps none.
  std::function<std::unique_ptr<Ops>(size_t bytes)> open_with_shares;

  std::unique_ptr<Ops> open(int threads = 0) const { return open_with(threads); }
  // Of one rounding to the compute dtype.
  double epsilon() const {
    return dtype == DType::kFloat32 ? 0x1p-23 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
  }
};

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Those of this program: host_backends.cc, emulated_backends.cc or cuda_backends.cc.
std::vector<Backend> all_backends();

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

class BackendTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
  }
};

// What a test wrote, in device memory.
template <class Value>
std::unique_ptr<DeviceBuffer> on_device(Ops& ops, const std::vector<Value>& values) {
  auto buffer = ops.allocate(values.size() * sizeof(Value));
  ops.copy(reinterpret_cast<const std::byte*>(values.data()), buffer->data(), buffer->bytes());
  return buffer;
}

// All bits set: floats of either size are NaN.
inline std::unique_ptr<DeviceBuffer> nan_on_device(Ops& ops, size_t bytes) {
  return on_device(ops, std::vector<uint8_t>(bytes, 0xFF));
}

inline std::vector<float> from_device(Ops& ops, DeviceBuffer& buffer) {
  std::vector<float> values(buffer.bytes() / sizeof(float));
  ops.copy(buffer.data(), reinterpret_cast<std::byte*>(values.data()), buffer.bytes());
  return values;
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

inline bool same_bytes(const float* left, const float* right, size_t count) {
  return std::memcmp(left, right, count * sizeof(float)) == 0;
}

}  // namespace lckv
