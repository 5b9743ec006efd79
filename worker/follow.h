// A rank that is not the leader, from its start to its end.
#pragma once

#include "worker/config.h"

namespace lckv {

// The exit code. A failure ends the process from within.
int follow(const WorkerConfig& config);

}  // namespace lckv
