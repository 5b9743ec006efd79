#include "worker/service/seat_rate.h"

#include <algorithm>
#include <cmath>

namespace lckv {
namespace {

// Of one sequence in the mean of all.
constexpr double kShare = 0.05;

}  // namespace

double SeatRate::decayed(absl::Time now) const {
  return weight_ * std::exp(-absl::FDivDuration(now - last_, kMemory));
}

void SeatRate::seated(absl::Time now) {
  weight_ = weight_ == 0 ? 1 : decayed(now) + 1;
  last_ = now;
  first_ = std::min(first_, now);
}

void SeatRate::ended(absl::Duration held) {
  held_ = any_ended_ ? held_ + kShare * (held - held_) : held;
  any_ended_ = true;
}

double SeatRate::per_second(absl::Time now) const {
  if (weight_ == 0) return 0;
  // What a steady rate of 1 would have come to in the time there was: an average over it. A first
  // burst counts as if it had taken a second.
  const absl::Duration age = std::max(now - first_, absl::Seconds(1));
  const double full = 1 - std::exp(-absl::FDivDuration(age, kMemory));
  return decayed(now) / (absl::ToDoubleSeconds(kMemory) * full);
}

}  // namespace lckv
