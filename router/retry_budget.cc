#include "router/retry_budget.h"

#include <algorithm>

namespace lckv {

double& RetryBudget::left_of(const std::string& model) {
  return left_.try_emplace(model, options_.capacity).first->second;
}

void RetryBudget::earn(const std::string& model) {
  std::lock_guard lock(mutex_);
  double& left = left_of(model);
  left = std::min(left + options_.earned_per_call, static_cast<double>(options_.capacity));
}

bool RetryBudget::spend(const std::string& model) {
  std::lock_guard lock(mutex_);
  double& left = left_of(model);
  if (left < 1) return false;
  left -= 1;
  return true;
}

absl::Duration retry_backoff(uint32_t num_retries, double share) {
  const absl::Duration longest =
      std::min(absl::Milliseconds(100) * (1 << std::min(num_retries, 5u)), absl::Seconds(2));
  return longest * (1 - 0.5 * share);
}

}  // namespace lckv
