// The command line of lckv-router.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "router/router.h"
#include "rpc/logging.h"

namespace lckv {

struct RouterConfig {
  RouterOptions router;
  LoggingOptions logging;
  uint16_t metrics_port = 9090;
  uint16_t health_port = 50052;
  absl::Duration shutdown_delay = absl::ZeroDuration();
  absl::Duration shutdown_grace = absl::Seconds(30);
};

// The exit code where the program is to end now.
std::optional<int> parse_router_config(int argc, const char* const* argv, RouterConfig& config);

}  // namespace lckv
