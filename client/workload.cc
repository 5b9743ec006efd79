#include "client/workload.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"
#include "nlohmann/json.hpp"

namespace lckv {
namespace {

constexpr size_t kTraceBlockTokens = 512;
constexpr int64_t kMaxTraceTokens = 1 << 24;
constexpr double kMaxTraceMilliseconds = 1e10;

// Until the request after the one of that number.
absl::Duration gap_after(int number, const WorkloadOptions& options, std::mt19937_64& random) {
  if (options.requests_per_second <= 0) return absl::ZeroDuration();
  const absl::Duration mean = absl::Seconds(1 / options.requests_per_second);
  switch (options.arrivals) {
    case Arrivals::kConstant:
      return mean;
    case Arrivals::kBurst:
      return (number + 1) % options.burst_size == 0 ? options.burst_size * mean
                                                    : absl::ZeroDuration();
    case Arrivals::kPoisson:
      break;
  }
  return absl::Seconds(std::exponential_distribution<double>(options.requests_per_second)(random));
}

// A number of `line` from `least` on; below it where there is none.
int64_t length_of(const nlohmann::json& line, const char* key, int64_t least) {
  const auto found = line.find(key);
  if (found == line.end() || !found->is_number_integer()) return least - 1;
  const auto value = found->get<int64_t>();
  return value > kMaxTraceTokens ? least - 1 : value;
}

void append_random(std::vector<uint32_t>& tokens, size_t count, uint32_t vocabulary,
                   uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<uint32_t> id(0, vocabulary - 1);
  for (size_t i = 0; i < count; ++i) tokens.push_back(id(random));
}

absl::StatusOr<PlannedRequest> parse_trace_line(const std::string& text,
                                                const TraceOptions& options, int number) {
  const auto wrong = [&](const char* key, const char* right) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.name, ":", number, ": ", key, " must be ", right));
  };
  const auto line = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) return wrong("the line", "a JSON object");
  const auto time = line.find("timestamp");
  if (time == line.end() || !time->is_number() || time->get<double>() < 0 ||
      time->get<double>() > kMaxTraceMilliseconds) {
    return wrong("timestamp", "a number of milliseconds from 0 on");
  }
  const int64_t input = length_of(line, "input_length", 1);
  if (input < 1) return wrong("input_length", "a number of tokens from 1 on");
  const int64_t output = length_of(line, "output_length", 1);
  if (output < 1) return wrong("output_length", "a number of tokens from 1 on");
  PlannedRequest request{.start = absl::Milliseconds(time->get<double>()),
                         .output_tokens = static_cast<uint32_t>(output)};
  const auto length = static_cast<size_t>(input);
  if (const auto blocks = line.find("hash_ids"); blocks != line.end()) {
    if (!blocks->is_array()) return wrong("hash_ids", "an array of numbers");
    for (const nlohmann::json& block : *blocks) {
      if (!block.is_number_integer()) return wrong("hash_ids", "an array of numbers");
      const size_t left = length - std::min(length, request.prompt.size());
      append_random(request.prompt, std::min(left, kTraceBlockTokens), options.vocabulary,
                    options.seed ^ (block.get<uint64_t>() << 1));
    }
  }
  append_random(request.prompt, length - request.prompt.size(), options.vocabulary,
                options.seed ^ (static_cast<uint64_t>(number) << 1 | 1));
  return request;
}

}  // namespace

absl::StatusOr<LengthRange> parse_length_range(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, '-');
  LengthRange range;
  if (parts.size() > 2 || !absl::SimpleAtoi(parts.front(), &range.min) ||
      !absl::SimpleAtoi(parts.back(), &range.max) || range.min == 0 || range.min > range.max) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no length; write one like 128 or 16-512"));
  }
  return range;
}

std::vector<PlannedRequest> draw_workload(const WorkloadOptions& options) {
  LCKV_CHECK(options.vocabulary > 0);
  std::mt19937_64 random(options.seed);
  std::uniform_int_distribution<uint32_t> id(0, options.vocabulary - 1);
  std::uniform_int_distribution<uint32_t> prompt(options.prompt_tokens.min,
                                                 options.prompt_tokens.max);
  std::uniform_int_distribution<uint32_t> output(options.output_tokens.min,
                                                 options.output_tokens.max);
  absl::Duration start = absl::ZeroDuration();
  std::vector<PlannedRequest> requests(options.num_requests);
  for (int number = 0; number < options.num_requests; ++number) {
    PlannedRequest& request = requests[number];
    request.start = start;
    request.prompt.resize(prompt(random));
    for (uint32_t& token : request.prompt) token = id(random);
    request.output_tokens = output(random);
    start += gap_after(number, options, random);
  }
  return requests;
}

absl::StatusOr<std::vector<PlannedRequest>> parse_trace(std::istream& lines,
                                                        const TraceOptions& options) {
  LCKV_CHECK(options.vocabulary > 0);
  std::vector<PlannedRequest> requests;
  std::string text;
  for (int number = 1; std::getline(lines, text); ++number) {
    if (text.empty()) continue;
    if (options.max_requests > 0 && static_cast<int>(requests.size()) == options.max_requests)
      break;
    auto request = parse_trace_line(text, options, number);
    if (!request.ok()) return request.status();
    requests.push_back(*std::move(request));
  }
  if (requests.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.name, ": no request in it"));
  }
  std::stable_sort(
      requests.begin(), requests.end(),
      [](const PlannedRequest& a, const PlannedRequest& b) { return a.start < b.start; });
  return requests;
}

}  // namespace lckv
