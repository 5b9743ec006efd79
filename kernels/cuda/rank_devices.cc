#include "kernels/cuda/rank_devices.h"

#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Containers of one machine have names of their own, as NCCL looks at it too: they cannot map each
// other's memory without more ado.
std::string this_host() {
  std::array<char, 256> name = {};
  if (gethostname(name.data(), name.size() - 1) != 0) name = {};
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  return absl::StrCat(name.data(), " ", boot);
}

std::string uuid_text(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof(uuid.bytes)));
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> tell_each_other(const Meeting& meeting,
                                                         const std::string& subject,
                                                         std::string own) {
  const auto key = [&](int rank) { return absl::StrCat(subject, "/", meeting.life, "/", rank); };
  if (absl::Status status = meeting.store.set(key(meeting.rank), own); !status.ok()) return status;
  std::vector<std::string> all(meeting.size);
  for (int rank = 0; rank < meeting.size; ++rank) {
    if (rank == meeting.rank) {
      all[rank] = std::move(own);
      continue;
    }
    auto theirs = meeting.store.get(key(rank), meeting.deadline);
    if (!theirs.ok()) {
      return absl::Status(theirs.status().code(), absl::StrCat("no ", subject, " of rank ", rank,
                                                               ": ", theirs.status().message()));
    }
    all[rank] = *std::move(theirs);
  }
  return all;
}

RankDevice current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device), "asking for the device");
  return {.host = this_host(), .uuid = uuid_text(properties.uuid)};
}

absl::StatusOr<std::vector<RankDevice>> tell_devices(const Meeting& meeting,
                                                     const RankDevice& own) {
  const auto told = tell_each_other(meeting, "device", absl::StrCat(own.uuid, "\n", own.host));
  if (!told.ok()) return told.status();
  std::vector<RankDevice> devices;
  for (const std::string& text : *told) {
    const size_t line = std::min(text.find('\n'), text.size());
    devices.push_back(
        {.host = text.substr(std::min(line + 1, text.size())), .uuid = text.substr(0, line)});
  }
  return devices;
}

absl::Status check_devices_differ(std::span<const RankDevice> devices) {
  for (size_t rank = 1; rank < devices.size(); ++rank) {
    const auto other = std::find_if(devices.begin(), devices.begin() + rank, [&](const auto& one) {
      return one.uuid == devices[rank].uuid;
    });
    if (other == devices.begin() + rank) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "ranks ", other - devices.begin(), " and ", rank, " have the same device, ", other->uuid,
        ": each needs one of its own; for tests, --allow-shared-device lets them share it"));
  }
  return absl::OkStatus();
}

bool are_on_one_host(std::span<const RankDevice> devices) {
  return std::all_of(devices.begin(), devices.end(),
                     [&](const RankDevice& one) { return one.host == devices.front().host; });
}

}  // namespace lckv
