// Who works on what: one thread where the others would come too late.
#include "kernels/cpu/threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <thread>
#include <vector>

namespace lckv {
namespace {

constexpr double kSecond = 1e9;  // nanoseconds

struct Shares {
  std::vector<std::atomic<int>> times;  // that an item was done
  std::atomic<int> threads = 0;         // bits
  std::atomic<int64_t> smallest = INT64_MAX;

  Shares(CpuThreads& threads, int64_t items, int64_t least, double nanoseconds)
      : times(static_cast<size_t>(items)) {
    threads.share(items, least, nanoseconds,
                  [this](int64_t begin, int64_t end, int thread) { take(begin, end, thread); });
  }
  void take(int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) ++times[static_cast<size_t>(item)];
    threads |= 1 << thread;
    if (end < static_cast<int64_t>(times.size())) {
      smallest = std::min(smallest.load(), end - begin);
    }
  }
  bool each_once() const {
    return std::all_of(times.begin(), times.end(), [](const auto& n) { return n == 1; });
  }
};

TEST(CpuThreadsTest, LittleWorkIsForTheCallerAlone) {
  CpuThreads threads(4);
  const Shares shares(threads, 1000, 1, 100);
  EXPECT_TRUE(shares.each_once());
  EXPECT_EQ(shares.threads, 1);
}

TEST(CpuThreadsTest, OneThreadDoesAll) {
  CpuThreads threads(1);
  EXPECT_TRUE(Shares(threads, 1000, 1, kSecond).each_once());
}

TEST(CpuThreadsTest, EveryItemIsDoneOnceInPartsThatAreNotTooSmall) {
  CpuThreads threads(4);
  for (const int64_t items : {1, 2, 7, 64, 1000, 4099}) {
    for (const int64_t least : {1, 4, 16}) {
      for (int again = 0; again < 50; ++again) {
        const Shares shares(threads, items, least, kSecond);
        ASSERT_TRUE(shares.each_once()) << items << " items, " << least << " at least";
        ASSERT_GE(shares.smallest, least);
      }
    }
  }
}

// All that are needed are there: each holds its part until the others have one.
TEST(CpuThreadsTest, MuchWorkIsForAllWhetherTheySpinOrSleep) {
  CpuThreads threads(3);
  for (int again = 0; again < 20; ++again) {
    std::atomic<int> arrived = 0;
    threads.share(3, kSecond, [&arrived](int64_t, int64_t, int) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
    if (again % 2 == 0) threads.rest();
    if (again % 4 < 2) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
}

}  // namespace
}  // namespace lckv
