// The requests of one `lckv bench` run, all drawn from one seed. Pure functions.
#pragma once

#include <cstdint>
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

struct WorkloadOptions {
  int num_requests = 0;
  LengthRange prompt_tokens;
  LengthRange output_tokens;
  double requests_per_second = 0;  // 0: all at once
  uint32_t vocabulary = 0;
  uint64_t seed = 0;
};

struct PlannedRequest {
  absl::Duration start;  // since the run's begin
  std::vector<uint32_t> prompt;
  uint32_t output_tokens = 0;
};

// Ids and lengths are uniform; arrivals are a Poisson process.
std::vector<PlannedRequest> draw_workload(const WorkloadOptions& options);

}  // namespace lckv
