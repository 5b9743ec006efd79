#include "tests/bench/device_limits.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <limits>
#include <utility>

#include "kernels/bfloat16.h"
#include "kernels/check.h"

namespace lckv::bench {
namespace {

constexpr int kTurns = 3;
constexpr double kTurnSeconds = 0.02;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// In host memory, in `dtype`.
std::vector<std::byte> numbers_on_host(DType dtype, size_t count) {
  LCKV_CHECK(dtype != DType::kFloat16);
  std::vector<std::byte> bytes(count * dtype_bytes(dtype));
  uint32_t state = 12345;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const float value = static_cast<float>(state >> 8) * 0x1p-23F - 1.0F;
    if (dtype == DType::kFloat32) {
      reinterpret_cast<float*>(bytes.data())[i] = value;
    } else {
      reinterpret_cast<uint16_t*>(bytes.data())[i] = float_to_bfloat16(value);
    }
  }
  return bytes;
}

std::unique_ptr<PackedWeight> made_up_weight(Ops& ops, const ProductShape& shape) {
  const auto numbers = numbers_on_host(ops.dtype(), static_cast<size_t>(shape.n * shape.k));
  const WeightSource source{
      .data = numbers.data(), .dtype = ops.dtype(), .n = shape.n, .k = shape.k};
  return ops.pack({&source, 1});
}

std::unique_ptr<DeviceBuffer> made_up_operand(Ops& ops, const ProductShape& shape) {
  const auto numbers =
      made_up_numbers(ops, DType::kFloat32, static_cast<size_t>(shape.rows * shape.k));
  auto operand = ops.allocate(static_cast<size_t>(shape.rows * ops.operand_row_bytes(shape.k)));
  ops.to_operand(numbers->floats(), shape.rows, shape.k, operand->data());
  return operand;
}

}  // namespace

double DeviceTimer::turn(const std::function<void()>& call, int num_calls) {
  std::array<std::byte, sizeof(float)> seen = {};
  const auto wait = [&] { ops_.copy(mark_->data(), seen.data(), seen.size()); };
  wait();
  const double began = seconds_now();
  for (int i = 0; i < num_calls; ++i) call();
  wait();
  return (seconds_now() - began) / num_calls;
}

double DeviceTimer::seconds_of(const std::function<void()>& call) {
  turn(call, 1);
  const int num_calls =
      static_cast<int>(std::clamp(kTurnSeconds / std::max(turn(call, 1), 1e-6), 1.0, 1000.0));
  double best = std::numeric_limits<double>::max();
  for (int i = 0; i < kTurns; ++i) best = std::min(best, turn(call, num_calls));
  return best;
}

std::unique_ptr<DeviceBuffer> made_up_numbers(Ops& ops, DType dtype, size_t count) {
  constexpr size_t kPieceNumbers = size_t{1} << 22;
  const auto piece = numbers_on_host(dtype, std::min(count, kPieceNumbers));
  auto buffer = ops.allocate(count * dtype_bytes(dtype));
  for (size_t done = 0; done < buffer->bytes(); done += piece.size()) {
    ops.copy(piece.data(), buffer->data() + done, std::min(piece.size(), buffer->bytes() - done));
  }
  return buffer;
}

DeviceCopies::DeviceCopies(std::shared_ptr<Ops> ops, size_t bytes)
    : ops_(std::move(ops)),
      from_(made_up_numbers(*ops_, DType::kFloat32, bytes / sizeof(float))),
      to_(ops_->allocate(from_->bytes())),
      timer_(*ops_) {}

double DeviceCopies::copy() {
  const double taken =
      timer_.seconds_of([&] { ops_->copy(from_->data(), to_->data(), from_->bytes()); });
  return 2.0 * static_cast<double>(from_->bytes()) / taken;
}

ProductLoad::ProductLoad(Ops& ops, const ProductShape& shape)
    : ops_(ops),
      shape_(shape),
      weight_(made_up_weight(ops, shape)),
      x_(made_up_operand(ops, shape)),
      y_(ops.allocate(static_cast<size_t>(shape.rows * shape.n) * sizeof(float))) {}

double ProductLoad::seconds() {
  return DeviceTimer(ops_).seconds_of([this] { run(); });
}

double device_product_peak(Ops& ops, const std::vector<ProductShape>& shapes) {
  double best = 0.0;
  for (const ProductShape& shape : shapes) {
    ProductLoad load(ops, shape);
    best = std::max(best, load.operations() / load.seconds());
  }
  return best;
}

}  // namespace lckv::bench
