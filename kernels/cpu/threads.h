// The threads among which the CPU backend shares out an operation.
#pragma once

namespace lckv {

// Owner: the CPU backend. Immutable; any thread may ask.
class CpuThreads {
 public:
  // Measures, for about a millisecond, what it takes to have them all at work: little while they
  // spin between operations, much where they sleep, most in a virtual machine.
  explicit CpuThreads(int count);

  int count() const { return count_; }
  // One, where a thread alone, at `nanoseconds`, is done before the others would have helped.
  int for_work(double nanoseconds) const { return nanoseconds > least_work_ ? count_ : 1; }

 private:
  const int count_;
  const double least_work_;  // nanoseconds of one thread
};

}  // namespace lckv
