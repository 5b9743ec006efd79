// What the launcher is told, from flags and LeaderWorkerSet's environment.
#pragma once

#include "absl/status/statusor.h"
#include "worker/config.h"
#include "worker/group/launcher.h"

namespace lckv {

// Whether this process is to start ranks, not to be one.
bool is_launcher(const WorkerConfig& config);

// `arguments`: of this program, without its name. Errors: InvalidArgument naming the flag or the
// variable.
absl::StatusOr<LaunchOptions> plan_launch(const WorkerConfig& config,
                                          std::vector<std::string> arguments);

}  // namespace lckv
