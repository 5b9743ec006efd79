// Collectives over TCP between processes, or threads, on CPUs: Gloo's transport, with exchanges of
// our own whose sums do not depend on timing.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/collectives.h"
#include "kernels/rendezvous.h"

namespace lckv {

struct GlooOptions {
  int rank = 0;
  int size = 1;
  std::string address;    // of the interface that peers reach this rank at: "127.0.0.1"
  std::string life;       // of the replica; ranks of another life never meet this one
  RendezvousStore store;  // the same for all ranks; not used after connect_gloo()
  absl::Duration timeout = absl::Seconds(60);       // until all ranks are found
  absl::Duration call_timeout = absl::Seconds(60);  // how long a call waits for a peer
};

// Blocks until every rank of the life is connected with every other; all call it at about the same
// time. Calls read and write the sockets themselves, on the thread that makes them.
//
// Results. A sum is taken in the order of ranks, element by element: the same bytes on every rank
// and in every run. After the first error of a call the connections are closed, so that peers hear
// of it at once, and every later call gives that error again.
//
// SIGPIPE is ignored in this process from then on: a peer that is gone is a status, not a signal.
// Errors: InvalidArgument (rank, size or address), DeadlineExceeded naming the rank that did not
// come, Unavailable naming the rank that is gone, FailedPrecondition for one of another life, and
// what the store says.
absl::StatusOr<std::unique_ptr<Collectives>> connect_gloo(const GlooOptions& options);

}  // namespace lckv
