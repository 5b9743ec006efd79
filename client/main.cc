// lckv: the command-line client.
#include <unistd.h>

#include <iostream>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/commands.h"
#include "client/connection.h"
#include "rpc/flags.h"
#include "rpc/lock_checks.h"
#include "rpc/shutdown.h"

int main(int argc, char** argv) {
  lckv::leave_lock_checks_out();
  // Elsewhere they stay at their default: a shell then sees that Ctrl-C ended the client.
  if (getpid() == 1) lckv::end_at_shutdown_signals();
  CLI::App program(
      "Client of an LCKV Serve router. Every flag can also be given as LCKV_<FLAG> in the "
      "environment.",
      "lckv");
  program.require_subcommand(1);
  const std::vector<lckv::Command> commands = {
      lckv::add_generate(program), lckv::add_score(program),  lckv::add_bench(program),
      lckv::add_plan(program),     lckv::add_models(program), lckv::add_replicas(program),
      lckv::add_drain(program)};
  if (const auto exit_code = lckv::parse_flags(program, argc, argv)) return *exit_code;
  for (const lckv::Command& command : commands) {
    if (!command.app->parsed()) continue;
    const absl::Status status = command.run();
    if (status.ok()) return 0;
    std::cout.flush();
    std::cerr << "lckv " << command.app->get_name() << ": " << lckv::describe_error(status) << "\n";
    return 1;
  }
}
