// Logs on stderr, one line a message, as text or as JSON objects.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"

namespace lckv {

struct LoggingOptions {
  std::string level = "info";   // trace, debug, info, warning, error, off
  std::string format = "text";  // text, json
};

void add_logging_flags(CLI::App& app, LoggingOptions& options);

// Makes spdlog's default logger write to stderr so. main calls it once, before other threads log.
void set_up_logging(const LoggingOptions& options);

using LogFields = std::vector<std::pair<absl::string_view, std::string>>;

// Logs `message` with named values: key=value in text, members of the object in JSON. Values may
// hold any bytes.
void log_fields(spdlog::level::level_enum level, absl::string_view message,
                const LogFields& fields);

}  // namespace lckv
