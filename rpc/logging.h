// Logs on stderr, one line a message, as text or as JSON objects.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
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

// Text of any bytes, or a number, which JSON has without quotes.
struct LogValue {
  LogValue(std::string given) : text(std::move(given)) {}
  LogValue(const char* given) : text(given) {}
  LogValue(absl::string_view given) : text(given) {}
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  LogValue(Number number) : text(absl::StrCat(number)), is_number(true) {}

  std::string text;
  bool is_number = false;
};
using LogFields = std::vector<std::pair<absl::string_view, LogValue>>;

// Logs `message` with named values: key=value in text, members of the object in JSON.
void log_fields(spdlog::level::level_enum level, absl::string_view message,
                const LogFields& fields);

// One line for each request that has ended. A thread of its own writes them, so that serving never
// waits for whoever reads the log; where that falls behind, the oldest lines are dropped.
//
// Owner: main, after set_up_logging(). write() from any thread.
class RequestLog {
 public:
  RequestLog();
  // Writes what is left.
  ~RequestLog();
  RequestLog(const RequestLog&) = delete;
  RequestLog& operator=(const RequestLog&) = delete;

  void write(absl::string_view message, const LogFields& fields);

 private:
  struct Writer;
  const std::unique_ptr<Writer> writer_;
};

}  // namespace lckv
