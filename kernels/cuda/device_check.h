// Whether a device can serve a model, from what the driver and config.json say. Pure, so that every
// answer is tested without a device.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lckv {

struct DeviceFacts {
  int32_t device = 0;          // that was asked for
  int32_t driver_version = 0;  // as CUDA counts: 13000 is 13.0; 0: there is no driver
  int32_t runtime_version = 0;
  int32_t num_devices = 0;
  // Of the device, where there is one of this number.
  std::string name;
  int32_t capability = 0;  // 90: compute capability 9.0
  bool has_kernels = false;
  std::string architectures;  // that kernels were compiled for
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
  uint64_t required_bytes = 0;
};

// See open_cuda_ops for the errors of both.
absl::Status check_device(const DeviceFacts& facts);
// Of all layers.
absl::Status check_head_dim(int32_t head_dim);

}  // namespace lckv
