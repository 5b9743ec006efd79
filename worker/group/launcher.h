// Launcher: starts the ranks of one host, passes signals on, and ends all of them when one dies, is
// silent or fails, with one last line that says which, where and why.
//
// Single-threaded, without gRPC, fit to be PID 1. Blocks SIGTERM, SIGINT and SIGCHLD.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace lckv {

struct LaunchOptions {
  // Of this program, without its name: what all ranks share.
  std::vector<std::string> arguments;
  int first_rank = 0;
  int num_ranks = 1;   // on this host
  std::string leader;  // host:port; port 0 (any free one) only where rank 0 is on this host
  std::string life;    // of the replica; empty where several hosts launch it
  // A rank that is silent so long is taken for stopped.
  absl::Duration rank_timeout = absl::Seconds(3);
  // After a signal to end.
  absl::Duration stop_timeout = absl::Seconds(60);
};

// Returns the exit code, once no rank is left: 0 where all ended in order.
int launch(const LaunchOptions& options);

}  // namespace lckv
