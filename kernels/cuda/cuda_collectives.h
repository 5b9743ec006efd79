// Collectives between GPUs, in the order of the device's other operations: over memory that ranks
// of one host map from each other where that takes less time, else over NCCL.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "kernels/rendezvous.h"

namespace lckv {

struct CudaCollectivesOptions {
  int rank = 0;
  int size = 1;
  std::string life;             // of the replica; ranks of another life never meet this one
  RendezvousStore store;        // the same for all ranks; not used after connect_cuda_ranks()
  bool reproducible = false;    // sums are taken in the order of ranks, element by element
  bool shares_device = false;   // ranks may have one device; NCCL, which refuses it, is not used
  absl::Duration timeout;       // until all ranks have come, and for the first wait after that
  absl::Duration call_timeout;  // how long any later wait for a peer takes
  // Hears once, in one line for people, which way exchanges take.
  std::function<void(absl::string_view line)> say = [](absl::string_view) {};
};

// Blocks until every rank of the life has come; all call it at about the same time, each on a
// thread that its device belongs to. `ops` is what open_cuda_ops() gave and outlives the result.
//
// Calls take memory of the device or of the host. With the device's they return once their work is
// in the device's order, and a peer that does not come is found out by a wait. With the host's they
// wait themselves. A wait takes call_timeout at most, the first one `timeout`: other ranks may
// still be loading. NCCL's very first exchange also connects the ranks' devices, which has no
// deadline: that the start takes too long is the watchdog's to see. Sums have the same bytes on
// every rank. After the first error everything is aborted, and every later call gives that error
// again.
//
// Ranks of one host sum small messages, up to 2 MiB of all ranks together, through peer memory: in
// the order of ranks, reproducible or not (peer_index.h). With shares_device all calls go that way,
// whatever their size; ranks that are processes then get their device in turns, some milliseconds
// each, and an exchange takes a turn of every rank.
//
// Errors: InvalidArgument (rank or size); FailedPrecondition where two ranks have one device
// without shares_device, where with it they are not all on one host or cannot map each other's
// memory, or where NCCL is not to be had or refuses the devices; DeadlineExceeded; Unavailable
// where a peer or the way to it is gone; what the store says.
absl::StatusOr<std::unique_ptr<Collectives>> connect_cuda_ranks(
    const CudaCollectivesOptions& options, Ops& ops);

}  // namespace lckv
