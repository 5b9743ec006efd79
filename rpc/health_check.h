// --check-health: a program asks its own health port, for places that have no gRPC probes.
#pragma once

#include <cstdint>
#include <string>

#include "CLI/CLI.hpp"

namespace lckv {

// Adds the flag. Where it is given, parse_flags() prints the state and ends the program: 0 where it
// is ready, else 1. Whatever else the command line must hold is not asked for then. `host` and
// `port` are flags added before it.
void add_health_check_flag(CLI::App& app, const std::string& host, const uint16_t& port,
                           const std::string& group);

}  // namespace lckv
