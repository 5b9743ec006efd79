// Conventions that the command lines of all programs share, on top of CLI11.
//
// Every flag can also be given as LCKV_<FLAG> in the environment (--max-queue: LCKV_MAX_QUEUE); the
// command line wins. main's thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace lckv {

// Each adds one flag that shows its unit in --help, refuses a wrong value with the reason, and
// keeps the value of `target` as default.
CLI::Option* add_byte_size(CLI::App& app, const std::string& flag, uint64_t& target,
                           const std::string& help);
// "30s", "500ms", "2m"; not negative.
CLI::Option* add_duration(CLI::App& app, const std::string& flag, absl::Duration& target,
                          const std::string& help);
// 0 (any free one) or 1..65535.
CLI::Option* add_port(CLI::App& app, const std::string& flag, uint16_t& target,
                      const std::string& help);
// One of `values`; a wrong value is answered with the valid ones.
CLI::Option* add_choice(CLI::App& app, const std::string& flag, std::string& target,
                        const std::vector<std::string>& values, const std::string& help);

// As above for an enumeration.
template <typename Enum>
CLI::Option* add_enum(CLI::App& app, const std::string& flag, Enum& target,
                      const std::vector<std::pair<std::string, Enum>>& values,
                      const std::string& help) {
  static_assert(std::is_enum_v<Enum>);
  std::vector<std::string> names;
  std::string initial;
  for (const auto& [name, value] : values) {
    names.push_back(name);
    if (value == target) initial = name;
  }
  return app
      .add_option_function<std::string>(
          flag,
          [&target, values](const std::string& given) {
            for (const auto& [name, value] : values) {
              if (name == given) target = value;
            }
          },
          help)
      ->check(CLI::IsMember(names))
      ->default_str(initial);
}

// LCKV_<FLAG> of "--max-queue" or "max-queue".
std::string environment_name(absl::string_view flag);

// Gives each flag of `app` and of its subcommands its environment name, then parses. Returns the
// exit code where the program is to end now: 0 after --help or --version, 2 after a wrong command
// line, which was explained on stderr, or what a flag says that does something else.
std::optional<int> parse_flags(CLI::App& app, int argc, const char* const* argv);

}  // namespace lckv
