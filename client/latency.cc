#include "client/latency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/check.h"

namespace lckv {

void StreamTimes::add(absl::Time now, int64_t num_tokens) {
  if (num_tokens == 0) return;
  if (num_tokens_ == 0) {
    first_ = now;
  } else {
    inter_token_.push_back(absl::ToDoubleSeconds(now - last_));
  }
  last_ = now;
  num_tokens_ += num_tokens;
  deliveries_.push_back({now, num_tokens});
}

double percentile(const std::vector<double>& sorted, double fraction) {
  LCKV_CHECK(!sorted.empty());
  const double rank = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(std::floor(rank));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

Summary summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  Summary summary{.mean = total / static_cast<double>(values.size()),
                  .p50 = percentile(values, 0.5),
                  .p90 = percentile(values, 0.9),
                  .p99 = percentile(values, 0.99)};
  for (int i = 0; i <= 100; ++i) summary.percentiles.push_back(percentile(values, i / 100.0));
  return summary;
}

}  // namespace lckv
