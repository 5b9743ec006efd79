// DeviceProfile: what a simulated device can do, from a data file (deploy/devices/*.json). Pure
// data.
//
// Numbers are the data sheet's: how much of them a kernel reaches is a number of its own.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace lckv {

struct DeviceProfile {
  std::string name;
  double memory_bytes = 0;
  double memory_bytes_per_second = 0;
  double bfloat16_flops_per_second = 0;  // dense
  double float32_flops_per_second = 0;
  double host_bytes_per_second = 0;  // one way
  double peer_bytes_per_second = 0;  // to the other ranks' devices, one way
  // Shares of the above that kernels reach, above 0 and at most 1.
  double memory_share = 1;
  double flops_share = 1;
  absl::Duration step_overhead;   // launches, sampling, whatever does not depend on rows
  absl::Duration layer_overhead;  // between two layers
  absl::Duration peer_latency;    // of one collective
};

// Errors: InvalidArgument naming `file` and the key.
absl::StatusOr<DeviceProfile> parse_device_profile(absl::string_view json, const std::string& file);

// `device` is a name that `folder` has a file of ("h200"), or the path of a .json file. Errors:
// NotFound naming the device and those that the folder has; those above.
absl::StatusOr<DeviceProfile> read_device_profile(const std::string& device,
                                                  const std::string& folder);

}  // namespace lckv
