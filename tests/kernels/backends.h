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

template <class Value = float>
std::vector<Value> from_device(Ops& ops, DeviceBuffer& buffer) {
  std::vector<Value> values(buffer.bytes() / sizeof(Value));
  ops.copy(buffer.data(), reinterpret_cast<std::byte*>(values.data()), buffer.bytes());
  return values;
}

// What products take in, of rows of k values.
inline std::unique_ptr<DeviceBuffer> operand(Ops& ops, const std::vector<float>& x, int64_t k) {
  const int64_t rows = static_cast<int64_t>(x.size()) / k;
  auto made = nan_on_device(ops, rows * ops.operand_row_bytes(k));
  ops.to_operand(on_device(ops, x)->floats(), rows, k, made->data());
  return made;
}
inline std::unique_ptr<DeviceBuffer> empty_operand(Ops& ops, int64_t rows, int64_t k) {
  return nan_on_device(ops, rows * ops.operand_row_bytes(k));
}

// By how much the backend may have rounded a value of an operand.
inline double operand_error(const Ops& ops, double value) {
  if (ops.operand_row_bytes(64) == 64 * sizeof(float)) return 0.0;
  return ops.dtype() == DType::kBFloat16 ? 0x1p-8 * std::abs(value)
                                         : 0x1p-11 * std::abs(value) + 0x1p-25;
}

// In float32, or in the compute dtype, with zeros behind each row up to where the next one begins.
inline std::vector<float> from_operand(Ops& ops, DeviceBuffer& operand, int64_t k) {
  constexpr int64_t kWhole = 64;
  const auto bytes = from_device<uint8_t>(ops, operand);
  const int64_t value_bytes = ops.operand_row_bytes(kWhole) / kWhole;
  const int64_t stride = ops.operand_row_bytes(k) / value_bytes;
  const DType dtype = value_bytes == sizeof(float) ? DType::kFloat32 : ops.dtype();
  const int64_t rows = static_cast<int64_t>(bytes.size()) / ops.operand_row_bytes(k);
  std::vector<float> values;
  for (int64_t i = 0; i < rows * stride; ++i) {
    const float value = weight_value({.data = bytes.data(), .dtype = dtype}, i);
    if (i % stride < k) {
      values.push_back(value);
    } else {
      EXPECT_EQ(value, 0.0F);
    }
  }
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
