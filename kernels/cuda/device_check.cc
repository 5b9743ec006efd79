#include "kernels/cuda/device_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/attention_index.h"

namespace lckv {
namespace {

std::string version_text(int32_t version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::string gibibytes(uint64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

absl::Status check_device(const DeviceFacts& facts) {
  if (facts.driver_version == 0) {
    return absl::FailedPreconditionError("no CUDA driver on this machine");
  }
  // Within a major version, minor versions run each other's programs.
  if (facts.driver_version / 1000 < facts.runtime_version / 1000) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the CUDA driver is too old: it is for CUDA ", version_text(facts.driver_version),
        ", this program for CUDA ", version_text(facts.runtime_version)));
  }
  if (facts.num_devices == 0) return absl::FailedPreconditionError("no CUDA device to be seen");
  if (facts.device < 0 || facts.device >= facts.num_devices) {
    return absl::OutOfRangeError(absl::StrCat("no CUDA device ", facts.device, ": there are ",
                                              facts.num_devices, ", counted from 0"));
  }
  const std::string device = absl::StrCat("CUDA device ", facts.device, " (", facts.name, ")");
  if (!facts.has_kernels) {
    return absl::FailedPreconditionError(
        absl::StrCat(device, " has compute capability ", facts.capability / 10, ".",
                     facts.capability % 10, "; this program was built for ", facts.architectures));
  }
  if (facts.required_bytes > facts.free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        device, " has ", gibibytes(facts.free_bytes), " of ", gibibytes(facts.total_bytes),
        " free, and ", gibibytes(facts.required_bytes), " are needed"));
  }
  return absl::OkStatus();
}

absl::Status check_head_dim(int32_t head_dim) {
  const auto& sizes = kAttentionHeadDims;
  if (std::find(sizes.begin(), sizes.end(), head_dim) != sizes.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("config.json: head_dim: ", head_dim,
                                                    ": attention on CUDA devices is there for ",
                                                    absl::StrJoin(sizes, ", ")));
}

}  // namespace lckv
