// SeatRate: how fast a replica gives seats to what waits, and for how long a sequence keeps one.
// Routers estimate by it whether a call can end before its deadline.
//
// Only the time counts in which somebody waits: seats given to those who need not wait tell how
// many came, not how fast seats come free. Figures are exponential means.
//
// Owner: EngineService, under its lock.
#pragma once

#include "absl/time/time.h"

namespace lckv {

class SeatRate {
 public:
  // The mean forgets within this, or within the time that a seat is held where that is longer.
  static constexpr absl::Duration kMemory = absl::Seconds(5);

  void seated() { ++num_seated_; }
  // A sequence ended that had its first seat for so long.
  void ended(absl::Duration held);
  // After all that one report says of seats: whether somebody waits from now on.
  void observe(absl::Time now, bool any_waits);

  // Seats per second; 0 where nobody has waited for long enough to tell.
  double per_second() const;
  // Mean of the sequences that ended lately; zero before the first.
  absl::Duration held() const { return held_; }

 private:
  int num_seated_ = 0;  // since the last report
  bool any_waits_ = false;
  absl::Time last_ = absl::InfinitePast();
  double weight_ = 0;   // of seats given while others waited, each less the longer ago it is
  double seconds_ = 0;  // of waiting, weighted as they are
  absl::Duration held_;
  bool any_ended_ = false;
};

}  // namespace lckv
