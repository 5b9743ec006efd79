// What the ranks of a replica tell each other of their devices before they exchange anything there.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/rendezvous.h"

namespace lckv {

// One rank among those that meet in a store.
struct Meeting {
  int rank = 0;
  int size = 1;
  std::string life;  // of the replica
  RendezvousStore store;
  absl::Time deadline;
};

// What every rank says of `subject`, by rank; each says it once. Errors: DeadlineExceeded naming
// the first rank that said nothing, and what the store says.
absl::StatusOr<std::vector<std::string>> tell_each_other(const Meeting& meeting,
                                                         const std::string& subject,
                                                         std::string own);

struct RankDevice {
  std::string host;  // equal where processes can map each other's device memory
  std::string uuid;  // of the device, as nvidia-smi writes it
};

// The calling thread's current device.
RankDevice current_device();

// Of all ranks, by rank. Errors: as of tell_each_other.
absl::StatusOr<std::vector<RankDevice>> tell_devices(const Meeting& meeting, const RankDevice& own);

// FailedPrecondition, the same line on every rank, where two of them have one device.
absl::Status check_devices_differ(std::span<const RankDevice> devices);

bool are_on_one_host(std::span<const RankDevice> devices);

}  // namespace lckv
