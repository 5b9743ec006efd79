// Collectives between GPUs: NCCL's exchanges, in the order of the device's other operations.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "kernels/rendezvous.h"

namespace lckv {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  std::string life;             // of the replica; ranks of another life never meet this one
  RendezvousStore store;        // the same for all ranks; not used after connect_nccl()
  bool reproducible = false;    // sums are taken in the order of ranks, element by element
  absl::Duration timeout;       // until all ranks have come, and for the first wait after that
  absl::Duration call_timeout;  // how long any later wait for a peer takes
};

// Blocks until every rank of the life has come; all call it at about the same time, each on a
// thread that its device belongs to. `ops` is what open_cuda_ops() gave and outlives the result.
//
// Calls take memory of the device or of the host. With the device's they return once their work is
// in the device's order, and a peer that does not come is found out by wait(). With the host's they
// wait themselves. A wait takes call_timeout at most, the first one `timeout`: other ranks may
// still be loading. The very first exchange also connects the ranks' devices inside NCCL, which has
// no deadline: that the start takes too long is the watchdog's to see. Sums have the same bytes on
// every rank. After the first error the communicator is aborted, and every later call gives that
// error again.
//
// Errors: InvalidArgument (rank or size), FailedPrecondition where NCCL is not to be had or refuses
// these devices (two ranks on one), DeadlineExceeded, Unavailable where a peer or the way to it is
// gone, and what the store says.
absl::StatusOr<std::unique_ptr<Collectives>> connect_nccl(const NcclOptions& options, Ops& ops);

}  // namespace lckv
