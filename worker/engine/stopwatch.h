// Stopwatch: adds the time of its life to a total.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lckv {

class Stopwatch {
 public:
  explicit Stopwatch(absl::Duration& total) : total_(total) {}
  ~Stopwatch() { total_ += absl::Now() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  absl::Duration& total_;
  const absl::Time start_ = absl::Now();
};

}  // namespace lckv
