#include "worker/service/seat_rate.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lckv {
namespace {

// Of one sequence in the mean of all.
constexpr double kShare = 0.05;
// Seconds of waiting that say something.
constexpr double kEvidence = 0.25;

}  // namespace

void SeatRate::ended(absl::Duration held) {
  held_ = any_ended_ ? held_ + kShare * (held - held_) : held;
  any_ended_ = true;
}

void SeatRate::observe(absl::Time now, bool any_waits) {
  const int num_seated = std::exchange(num_seated_, 0);
  if (any_waits_) {
    const absl::Duration memory = std::max(kMemory, held_);
    const double kept = std::exp(-absl::FDivDuration(now - last_, memory));
    weight_ = weight_ * kept + num_seated;
    seconds_ = seconds_ * kept + absl::ToDoubleSeconds(memory) * (1 - kept);
  }
  any_waits_ = any_waits;
  last_ = now;
}

double SeatRate::per_second() const { return seconds_ < kEvidence ? 0 : weight_ / seconds_; }

}  // namespace lckv
