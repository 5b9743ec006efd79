#include "rpc/flags.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "rpc/byte_size.h"

namespace lckv {
namespace {

constexpr int kUsageExitCode = 2;

bool parse_duration(const std::string& text, absl::Duration& duration) {
  return absl::ParseDuration(text, &duration) && duration >= absl::ZeroDuration();
}

void name_environment(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string name = option->get_single_name();
    if (option->get_positional() || !option->get_envname().empty()) continue;
    if (option == app.get_help_ptr() || option == app.get_version_ptr()) continue;
    option->envname(environment_name(name));
  }
  for (CLI::App* subcommand : app.get_subcommands({})) name_environment(*subcommand);
}

}  // namespace

CLI::Option* add_byte_size(CLI::App& app, const std::string& flag, uint64_t& target,
                           const std::string& help) {
  return app
      .add_option_function<std::string>(
          flag, [&target](const std::string& given) { target = *parse_byte_size(given); }, help)
      ->check(CLI::Validator(
          [](std::string& given) { return std::string(parse_byte_size(given).status().message()); },
          "SIZE"))
      ->type_name("")
      ->default_str(absl::StrReplaceAll(format_byte_size(target), {{" ", ""}}));
}

CLI::Option* add_duration(CLI::App& app, const std::string& flag, absl::Duration& target,
                          const std::string& help) {
  const auto check = [](std::string& given) {
    absl::Duration ignored;
    if (parse_duration(given, ignored)) return std::string();
    return absl::StrCat("\"", given, "\" is no duration; write one like 30s, 500ms or 2m");
  };
  return app
      .add_option_function<std::string>(
          flag, [&target](const std::string& given) { parse_duration(given, target); }, help)
      ->check(CLI::Validator(check, "DURATION"))
      ->type_name("")
      ->default_str(absl::FormatDuration(target));
}

CLI::Option* add_port(CLI::App& app, const std::string& flag, uint16_t& target,
                      const std::string& help) {
  return app.add_option(flag, target, help)
      ->check(CLI::Range(0, 65535).description("PORT in [0, 65535]"))
      ->type_name("")
      ->capture_default_str();
}

CLI::Option* add_choice(CLI::App& app, const std::string& flag, std::string& target,
                        const std::vector<std::string>& values, const std::string& help) {
  return app.add_option(flag, target, help)
      ->check(CLI::IsMember(values))
      ->type_name("")
      ->capture_default_str();
}

std::string environment_name(absl::string_view flag) {
  absl::ConsumePrefix(&flag, "--");
  return absl::StrCat("LCKV_", absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

std::optional<int> parse_flags(CLI::App& app, int argc, const char* const* argv) {
  name_environment(app);
  // One line: the last one of a container's log is what says why it ended.
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return absl::StrCat(error.what(), " (--help lists what is valid)\n");
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();  // a flag that does something else than to configure
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsageExitCode;
  }
  return std::nullopt;
}

}  // namespace lckv
