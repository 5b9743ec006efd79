#include "rpc/logging.h"

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "rpc/flags.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace lckv {
namespace {

// A message with fields is "message US key RS value US key RS value": control characters, which
// fields() takes out of what it is given, so that no value can pass for another field.
constexpr char kFieldMark = '\x1f';
constexpr char kValueMark = '\x1e';

std::string without_marks(absl::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c == kFieldMark || c == kValueMark) c = ' ';
  }
  return result;
}

// JSON text of any bytes; invalid UTF-8 becomes U+FFFD.
std::string quoted(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool is_plain(absl::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_isalnum(c) && absl::string_view("._:/+-").find(c) == absl::string_view::npos) {
      return false;
    }
  }
  return !text.empty();
}

class LineFormatter final : public spdlog::formatter {
 public:
  explicit LineFormatter(bool json) : json_(json) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ",
                                              absl::FromChrono(message.time), absl::UTCTimeZone());
    const auto level_view = spdlog::level::to_string_view(message.level);
    const absl::string_view level(level_view.data(), level_view.size());
    const std::vector<absl::string_view> parts = absl::StrSplit(
        absl::string_view(message.payload.data(), message.payload.size()), kFieldMark);
    std::string text;
    if (json_) {
      text = absl::StrCat("{\"time\":\"", time, "\",\"level\":\"", level,
                          "\",\"message\":", quoted(parts[0]));
    } else {
      text = absl::StrCat(time, " ", level, " ", parts[0]);
    }
    for (size_t i = 1; i < parts.size(); ++i) {
      const std::pair<absl::string_view, absl::string_view> field =
          absl::StrSplit(parts[i], absl::MaxSplits(kValueMark, 1));
      if (json_) {
        absl::StrAppend(&text, ",", quoted(field.first), ":", quoted(field.second));
      } else {
        absl::StrAppend(&text, " ", field.first, "=",
                        is_plain(field.second) ? std::string(field.second) : quoted(field.second));
      }
    }
    absl::StrAppend(&text, json_ ? "}\n" : "\n");
    line.append(text.data(), text.data() + text.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(json_);
  }

 private:
  const bool json_;
};

}  // namespace

void add_logging_flags(CLI::App& app, LoggingOptions& options) {
  add_choice(app, "--log-level", options.level,
             {"trace", "debug", "info", "warning", "error", "off"}, "Least level that is logged")
      ->group("Logging");
  add_choice(app, "--log-format", options.format, {"text", "json"}, "Form of a log line")
      ->group("Logging");
}

void set_up_logging(const LoggingOptions& options) {
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("lckv", std::move(sink));
  logger->set_formatter(std::make_unique<LineFormatter>(options.format == "json"));
  logger->set_level(spdlog::level::from_str(options.level));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

void log_fields(spdlog::level::level_enum level, absl::string_view message,
                const LogFields& fields) {
  std::string text = without_marks(message);
  for (const auto& [key, value] : fields) {
    absl::StrAppend(&text, std::string(1, kFieldMark), key, std::string(1, kValueMark),
                    without_marks(value));
  }
  spdlog::log(level, "{}", text);
}

}  // namespace lckv
