#include "rpc/logging.h"

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "rpc/flags.h"
#include "spdlog/async.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace lckv {
namespace {

// A message with fields is "message US key RS value US key GS number": control characters, which
// log_fields() takes out of what it is given, so that no value can pass for another field.
constexpr char kFieldMark = '\x1f';
constexpr char kValueMark = '\x1e';
constexpr char kNumberMark = '\x1d';
constexpr size_t kMaxRequestLines = 8192;  // that wait to be written

std::string without_marks(absl::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c == kFieldMark || c == kValueMark || c == kNumberMark) c = ' ';
  }
  return result;
}

// JSON text of any bytes; invalid UTF-8 becomes U+FFFD.
std::string quoted(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string payload_of(absl::string_view message, const LogFields& fields) {
  std::string text = without_marks(message);
  for (const auto& [key, value] : fields) {
    absl::StrAppend(&text, std::string(1, kFieldMark), key,
                    std::string(1, value.is_number ? kNumberMark : kValueMark),
                    without_marks(value.text));
  }
  return text;
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
      const size_t mark = parts[i].find_first_of("\x1e\x1d");
      if (mark == absl::string_view::npos) continue;  // in a message that has no fields
      const absl::string_view key = parts[i].substr(0, mark);
      const absl::string_view value = parts[i].substr(mark + 1);
      const bool bare = json_ ? parts[i][mark] == kNumberMark : is_plain(value);
      absl::StrAppend(&text, json_ ? "," : " ", json_ ? quoted(key) : std::string(key),
                      json_ ? ":" : "=", bare ? std::string(value) : quoted(value));
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
  spdlog::log(level, "{}", payload_of(message, fields));
}

struct RequestLog::Writer {
  const std::shared_ptr<spdlog::details::thread_pool> pool =
      std::make_shared<spdlog::details::thread_pool>(kMaxRequestLines, 1);
  const std::shared_ptr<spdlog::async_logger> logger = std::make_shared<spdlog::async_logger>(
      "requests", spdlog::default_logger()->sinks().begin(),
      spdlog::default_logger()->sinks().end(), pool, spdlog::async_overflow_policy::overrun_oldest);
};

RequestLog::RequestLog() : writer_(std::make_unique<Writer>()) {
  writer_->logger->set_level(spdlog::default_logger()->level());
  writer_->logger->flush_on(spdlog::level::trace);
}

RequestLog::~RequestLog() = default;

void RequestLog::write(absl::string_view message, const LogFields& fields) {
  if (!writer_->logger->should_log(spdlog::level::info)) return;
  writer_->logger->info("{}", payload_of(message, fields));
}

}  // namespace lckv
