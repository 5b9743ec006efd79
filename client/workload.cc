#include "client/workload.h"

#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"

namespace lckv {

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
  for (PlannedRequest& request : requests) {
    request.start = start;
    request.prompt.resize(prompt(random));
    for (uint32_t& token : request.prompt) token = id(random);
    request.output_tokens = output(random);
    if (options.requests_per_second > 0) {
      start +=
          absl::Seconds(std::exponential_distribution<double>(options.requests_per_second)(random));
    }
  }
  return requests;
}

}  // namespace lckv
