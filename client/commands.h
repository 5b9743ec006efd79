// The subcommands of `lckv`. main adds all, parses, and runs the one that was named, on its thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace lckv {

// A subcommand and what it does once the command line is read.
struct Command {
  CLI::App* app = nullptr;
  std::function<absl::Status()> run;
};

Command add_generate(CLI::App& program);
Command add_score(CLI::App& program);
Command add_bench(CLI::App& program);
Command add_plan(CLI::App& program);
Command add_models(CLI::App& program);
Command add_replicas(CLI::App& program);
Command add_drain(CLI::App& program);

}  // namespace lckv
