// The collectives of this rank's device, once the ranks of the replica can find each other.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/rendezvous.h"
#include "worker/config.h"
#include "worker/engine/rank_progress.h"
#include "worker/startup.h"

namespace lckv {

struct MeetingPlace {
  std::string life;  // of the replica
  RendezvousStore store;
};

// Between what open_device() opened on each rank. Blocks until all are connected, --start-timeout
// at most. `progress` and the Ops in `loaded` outlive the result.
absl::StatusOr<std::unique_ptr<Collectives>> connect_ranks(const WorkerConfig& config,
                                                           MeetingPlace place, LoadedModel& loaded,
                                                           RankProgress& progress);

}  // namespace lckv
