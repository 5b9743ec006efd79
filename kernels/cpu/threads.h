// The threads among which the CPU backend shares out an operation.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/cpu/core_contention.h"

namespace lckv {

// Between two operations the threads spin for a while, so that a step's many small operations need
// not wait for wake-ups; where somebody else wants the same cores they sleep at once instead.
// Owner: the CPU backend. Thread: one caller at a time, who takes part in the work as number 0.
class CpuThreads {
 public:
  // Measures, for about a millisecond, what it takes to have them all at work.
  explicit CpuThreads(int count);
  ~CpuThreads();
  CpuThreads(const CpuThreads&) = delete;
  CpuThreads& operator=(const CpuThreads&) = delete;

  int count() const { return count_; }

  // Part [begin, end) of an operation's items, on thread number `thread`.
  using Work = absl::FunctionRef<void(int64_t begin, int64_t end, int thread)>;
  // Has all of [0, items) done. Which thread has which part is open: one that the host holds up
  // gets fewer. No part but the last is smaller than `least`. `nanoseconds`: of it all on one
  // thread; where that is done before others would have helped, the caller does it alone.
  void share(int64_t items, int64_t least, double nanoseconds, Work work);
  void share(int64_t items, double nanoseconds, Work work) { share(items, 1, nanoseconds, work); }

  // Other threads than these are about to work: until the next share() nobody spins.
  void rest() { spin_.store(false, std::memory_order_relaxed); }

 private:
  void serve(int thread);
  void take_parts(int thread);
  void run_together(int64_t items, int64_t grain, const Work& work);
  void wait_while(const std::atomic<uint32_t>& value, uint32_t old) const;
  double least_work(bool spin);

  const int count_;
  // Nanoseconds of one thread from which on the others help.
  double least_asleep_ = 0;
  double least_awake_ = 0;

  // Of the job at hand; written between two only.
  const Work* work_ = nullptr;
  int64_t items_ = 0;
  int64_t grain_ = 0;
  alignas(64) std::atomic<uint32_t> num_jobs_ = 0;     // begun
  alignas(64) std::atomic<int64_t> next_ = 0;          // item that nobody has taken
  alignas(64) std::atomic<uint32_t> num_working_ = 0;  // without the caller
  std::atomic<bool> spin_ = true;
  bool stopping_ = false;  // written before the last job begins
  CoreContention contention_;
  std::vector<std::thread> threads_;
};

}  // namespace lckv
