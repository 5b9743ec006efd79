// How many retries a model may make: each new call earns a share of one, each retry costs one.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "absl/time/time.h"

namespace lckv {

struct RetryBudgetOptions {
  // What a model starts with and may save at most. 0: no call is retried.
  uint32_t capacity = 1000;
  double earned_per_call = 0.2;
};

// Owner: the router. Thread-safe.
class RetryBudget {
 public:
  explicit RetryBudget(RetryBudgetOptions options) : options_(options) {}

  void earn(const std::string& model);
  // False where less than one retry is left; then nothing is taken.
  bool spend(const std::string& model);

 private:
  double& left_of(const std::string& model);

  const RetryBudgetOptions options_;
  std::mutex mutex_;                    // guards what follows
  std::map<std::string, double> left_;  // by served model
};

// Before retry number `num_retries` (from 0): doubles from 100 ms to 2 s, less up to half of it.
// `share` in [0, 1): the caller's random number.
absl::Duration retry_backoff(uint32_t num_retries, double share);

}  // namespace lckv
