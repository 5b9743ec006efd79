// The requests of one `lckv bench` run: drawn from one seed, or read from a trace. Pure functions.
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace lckv {

// "128" or "16-512", both ends included, at least 1.
struct LengthRange {
  uint32_t min = 1;
  uint32_t max = 1;
};
absl::StatusOr<LengthRange> parse_length_range(absl::string_view text);

// When requests start, at a rate.
enum class Arrivals : uint8_t {
  kPoisson,
  kConstant,
  kBurst,  // so many at once, and then a pause
};

struct WorkloadOptions {
  int num_requests = 0;
  LengthRange prompt_tokens;
  LengthRange output_tokens;
  double requests_per_second = 0;  // 0: all at once
  Arrivals arrivals = Arrivals::kPoisson;
  int burst_size = 1;
  uint32_t vocabulary = 0;
  uint64_t seed = 0;
};

struct PlannedRequest {
  absl::Duration start;  // since the run's begin
  std::vector<uint32_t> prompt;
  uint32_t output_tokens = 0;
};

// Ids and lengths are uniform.
std::vector<PlannedRequest> draw_workload(const WorkloadOptions& options);

struct TraceOptions {
  std::string name;  // of the file, for errors
  uint32_t vocabulary = 0;
  uint64_t seed = 0;
  int max_requests = 0;  // 0: all
};

// One JSON object a line, in the form of Mooncake's traces (Qin et al., 2024): `timestamp` in
// milliseconds, `input_length` and `output_length` in tokens and, where prompts share their
// beginnings, `hash_ids`: one number per block of 512 prompt tokens, equal for equal content.
// Errors: InvalidArgument naming line and key.
absl::StatusOr<std::vector<PlannedRequest>> parse_trace(std::istream& lines,
                                                        const TraceOptions& options);

}  // namespace lckv
