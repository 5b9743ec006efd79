// Who works on what: one thread where the others would come too late.
#include "kernels/cpu/threads.h"

#include <gtest/gtest.h>

namespace lckv {
namespace {

constexpr double kSecond = 1e9;  // nanoseconds

TEST(CpuThreadsTest, LittleWorkIsForOneAndMuchForAll) {
  const CpuThreads threads(2);
  EXPECT_EQ(threads.count(), 2);
  EXPECT_EQ(threads.for_work(100), 1);
  EXPECT_EQ(threads.for_work(kSecond), 2);
}

TEST(CpuThreadsTest, OneAloneHasNobodyToWakeFor) { EXPECT_EQ(CpuThreads(1).for_work(kSecond), 1); }

}  // namespace
}  // namespace lckv
