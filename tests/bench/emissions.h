// Emissions: when each token of each stream left its source, for whoever measures how late it
// came.
//
// Streams and positions are small numbers; the last kKept tokens of a stream are kept. One thread
// writes a stream, any thread reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/time/clock.h"

namespace lckv::bench {

class Emissions {
 public:
  explicit Emissions(size_t num_streams)
      : times_(new std::atomic<int64_t>[num_streams * kKept]()) {}

  void emitted(size_t stream, uint32_t position) {
    times_[stream * kKept + position % kKept].store(absl::GetCurrentTimeNanos(),
                                                    std::memory_order_release);
  }
  // Nanoseconds from then to now.
  int64_t since(size_t stream, uint32_t position) const {
    return absl::GetCurrentTimeNanos() -
           times_[stream * kKept + position % kKept].load(std::memory_order_acquire);
  }

 private:
  static constexpr size_t kKept = 512;
  const std::unique_ptr<std::atomic<int64_t>[]> times_;
};

}  // namespace lckv::bench
