// Whether somebody else wants the cores that a process' threads run on.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

namespace lckv {

// From the time that threads were ready to run and did not, which Linux counts per thread
// (/proc/PID/task/TID/schedstat). Owner: CpuThreads. Thread: one; but `watch_this_thread`, from
// each of theirs, one after the other, before the first question.
class CoreContention {
 public:
  CoreContention() = default;
  ~CoreContention();
  CoreContention(const CoreContention&) = delete;
  CoreContention& operator=(const CoreContention&) = delete;

  void watch_this_thread();
  // Looks ten times a second at most. High from a fifth of the threads' time on, until it has been
  // less than a twentieth for a second; and where Linux does not tell.
  bool is_high();

 private:
  // Nanoseconds, of all threads; negative where it cannot be read.
  int64_t waited() const;

  std::vector<int> files_;
  std::chrono::steady_clock::time_point looked_;
  std::chrono::steady_clock::time_point high_until_;
  int64_t waited_before_ = 0;
  bool high_ = false;
};

}  // namespace lckv
