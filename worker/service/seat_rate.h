// SeatRate: how fast a replica gives seats to what waits, and for how long a sequence keeps one.
// Routers estimate by it whether a call can end before its deadline.
//
// Owner: EngineService, under its lock. Both figures forget with a time constant of kMemory.
#pragma once

#include "absl/time/time.h"

namespace lckv {

class SeatRate {
 public:
  static constexpr absl::Duration kMemory = absl::Seconds(5);

  void seated(absl::Time now);
  // A sequence ended that had its first seat for so long.
  void ended(absl::Duration held);

  // Seats per second; 0 before the first.
  double per_second(absl::Time now) const;
  // Mean of the sequences that ended lately; zero before the first.
  absl::Duration held() const { return held_; }

 private:
  double decayed(absl::Time now) const;

  double weight_ = 0;  // of seats given, each less the longer ago it is
  absl::Time last_;
  absl::Time first_ = absl::InfiniteFuture();
  absl::Duration held_;
  bool any_ended_ = false;
};

}  // namespace lckv
