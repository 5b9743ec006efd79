// What a device can do, measured through its operations in the same run as what is compared with
// it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "tests/bench/limits.h"

namespace lckv::bench {

// Times operations of a device that may work behind the host's back.
class DeviceTimer {
 public:
  // `ops` outlives it.
  explicit DeviceTimer(Ops& ops) : ops_(ops), mark_(ops.allocate(sizeof(float))) {}

  // Seconds of a call in the best of some turns, each of as many calls as make waiting for the
  // device not count.
  double seconds_of(const std::function<void()>& call);

 private:
  double turn(const std::function<void()>& call, int num_calls);

  Ops& ops_;
  const std::unique_ptr<DeviceBuffer> mark_;
};

// Spread over [-1, 1), in `dtype`: products and copies of zeros are faster than those of numbers.
std::unique_ptr<DeviceBuffer> made_up_numbers(Ops& ops, DType dtype, size_t count);

// One buffer that is copied into another.
class DeviceCopies {
 public:
  DeviceCopies(std::shared_ptr<Ops> ops, size_t bytes);

  // Bytes per second, those read and those written.
  double copy();

 private:
  const std::shared_ptr<Ops> ops_;
  const std::unique_ptr<DeviceBuffer> from_;
  const std::unique_ptr<DeviceBuffer> to_;
  DeviceTimer timer_;
};

// A product of made-up numbers.
class ProductLoad {
 public:
  // `ops` outlives it.
  ProductLoad(Ops& ops, const ProductShape& shape);

  void run() {
    ops_.matmul(*weight_, x_->data(), shape_.rows, y_->floats(), /*bias=*/nullptr,
                /*accumulate=*/false);
  }
  double seconds();
  double operations() const {
    return 2.0 * static_cast<double>(shape_.rows) * static_cast<double>(shape_.n) *
           static_cast<double>(shape_.k);
  }

 private:
  Ops& ops_;
  const ProductShape shape_;
  const std::unique_ptr<PackedWeight> weight_;
  const std::unique_ptr<DeviceBuffer> x_;  // operand
  const std::unique_ptr<DeviceBuffer> y_;
};

// FLOP per second of Ops::matmul, the best over the shapes.
double device_product_peak(Ops& ops, const std::vector<ProductShape>& shapes);

}  // namespace lckv::bench
