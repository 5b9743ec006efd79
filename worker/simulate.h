// lckv-worker --device sim: replicas on devices that are not there, any number in one process.
#pragma once

#include "worker/config.h"

namespace lckv {

// Serves until SIGTERM or SIGINT; main's whole work. Replica i has each port plus i. Returns the
// exit code.
int simulate(const WorkerConfig& config);

}  // namespace lckv
