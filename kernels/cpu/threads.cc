#include "kernels/cpu/threads.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>

namespace lckv {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than an engine needs between two steps.
constexpr std::chrono::milliseconds kSpin(1);
// Between two looks at the clock.
constexpr int kPauses = 64;
// Of a job and thread: so many that what the slowest has left at the end is little.
constexpr int64_t kParts = 16;
// Nanoseconds of work that is never shared out.
constexpr double kLeastWork = 6500;

}  // namespace

CpuThreads::CpuThreads(int count) : count_(count) {
  for (int thread = 1; thread < count_; ++thread) {
    num_working_.store(1);
    threads_.emplace_back([this, thread] { serve(thread); });
    num_working_.wait(1);
  }
  least_asleep_ = least_work(false);
  least_awake_ = least_work(true);
}

CpuThreads::~CpuThreads() {
  stopping_ = true;
  num_jobs_.fetch_add(1, std::memory_order_release);
  num_jobs_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void CpuThreads::share(int64_t items, int64_t least, double nanoseconds, Work work) {
  const bool spin = count_ > 1 && !contention_.is_high();
  if (nanoseconds < (spin ? least_awake_ : least_asleep_) || items <= least) {
    work(0, items, 0);
    return;
  }
  spin_.store(spin, std::memory_order_relaxed);
  const int64_t grain = std::max(items / (kParts * count_) / least, int64_t{1}) * least;
  run_together(items, grain, work);
}

void CpuThreads::run_together(int64_t items, int64_t grain, const Work& work) {
  work_ = &work;
  items_ = items;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  num_working_.store(static_cast<uint32_t>(count_ - 1), std::memory_order_relaxed);
  num_jobs_.fetch_add(1, std::memory_order_release);
  num_jobs_.notify_all();
  take_parts(0);
  while (const uint32_t left = num_working_.load(std::memory_order_acquire)) {
    wait_while(num_working_, left);
  }
}

void CpuThreads::take_parts(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= items_) return;
    (*work_)(begin, std::min(begin + grain_, items_), thread);
  }
}

void CpuThreads::serve(int thread) {
  contention_.watch_this_thread();
  num_working_.store(0);
  num_working_.notify_one();
  for (uint32_t seen = 0;; ++seen) {
    wait_while(num_jobs_, seen);
    if (stopping_) return;
    take_parts(thread);
    if (num_working_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_working_.notify_one();
  }
}

void CpuThreads::wait_while(const std::atomic<uint32_t>& value, uint32_t old) const {
  const Clock::time_point end = Clock::now() + kSpin;
  while (spin_.load(std::memory_order_relaxed) && Clock::now() < end) {
    for (int i = 0; i < kPauses; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      __builtin_ia32_pause();
    }
  }
  value.wait(old, std::memory_order_acquire);
}

// With n threads, work of t takes t/n and an empty job: less than t if t > job n / (n - 1).
double CpuThreads::least_work(bool spin) {
  if (count_ == 1) return std::numeric_limits<double>::infinity();
  constexpr std::chrono::microseconds kPause(50);  // after which those that sleep do
  spin_.store(spin, std::memory_order_relaxed);
  std::array<double, 9> taken;  // the median, since others use the cores too
  for (double& nanoseconds : taken) {
    const Clock::time_point end = Clock::now() + kPause;
    while (Clock::now() < end) __builtin_ia32_pause();
    const Clock::time_point begin = Clock::now();
    run_together(count_, 1, [](int64_t, int64_t, int) {});
    nanoseconds = std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
  }
  std::nth_element(taken.begin(), taken.begin() + taken.size() / 2, taken.end());
  return std::max(kLeastWork, taken[taken.size() / 2] * count_ / (count_ - 1));
}

}  // namespace lckv
