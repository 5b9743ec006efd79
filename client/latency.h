// What `lckv bench` measures of streams, with vLLM's definitions.
//
// Times are seconds. TTFT: from sending a request to its first tokens. ITL: between two deliveries
// of tokens of one stream. TPOT: (end-to-end - TTFT) / (tokens - 1), of streams with two tokens or
// more. End-to-end: from sending to the last tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace lckv {

// Of one request. One thread at a time.
class StreamTimes {
 public:
  explicit StreamTimes(absl::Time sent) : sent_(sent) {}

  void add(absl::Time now, int64_t num_tokens);

  int64_t num_tokens() const { return num_tokens_; }
  // Valid once a token came.
  double ttft() const { return absl::ToDoubleSeconds(first_ - sent_); }
  double end_to_end() const { return absl::ToDoubleSeconds(last_ - sent_); }
  // Valid from two tokens on.
  double tpot() const { return (end_to_end() - ttft()) / static_cast<double>(num_tokens_ - 1); }
  const std::vector<double>& inter_token() const { return inter_token_; }
  struct Delivery {
    absl::Time time;
    int64_t num_tokens = 0;
  };
  const std::vector<Delivery>& deliveries() const { return deliveries_; }

 private:
  absl::Time sent_;
  absl::Time first_;
  absl::Time last_;
  int64_t num_tokens_ = 0;
  std::vector<double> inter_token_;
  std::vector<Delivery> deliveries_;
};

// All zero where nothing was measured.
struct Summary {
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  std::vector<double> percentiles;  // 0 to 100; empty where nothing was measured
};

// Linear between the two nearest ranks; `sorted` ascends and is not empty; `fraction` in [0, 1].
double percentile(const std::vector<double>& sorted, double fraction);
Summary summarize(std::vector<double> values);

}  // namespace lckv
