#include "worker/service/seat_rate.h"

#include "gtest/gtest.h"

namespace lckv {
namespace {

absl::Time at(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

class SeatRateTest : public ::testing::Test {
 protected:
  // Reports every 10 ms, with so many seats given in all.
  void run(double per_second, double seconds, bool any_waits) {
    double given = 0;
    for (const double end = now_ + seconds; now_ < end; now_ += 0.01) {
      for (given += per_second * 0.01; given >= 1; --given) rate_.seated();
      rate_.observe(at(now_), any_waits);
    }
  }

  SeatRate rate_;
  double now_ = 0;
};

TEST_F(SeatRateTest, NothingIsKnownAtFirst) {
  EXPECT_EQ(rate_.per_second(), 0);
  EXPECT_EQ(rate_.held(), absl::ZeroDuration());
}

TEST_F(SeatRateTest, ASteadyRateIsFoundSoonAndFollowed) {
  run(20, 2, true);
  EXPECT_NEAR(rate_.per_second(), 20, 2);
  run(20, 20, true);
  EXPECT_NEAR(rate_.per_second(), 20, 1);
  run(200, 25, true);
  EXPECT_NEAR(rate_.per_second(), 200, 10);
}

TEST_F(SeatRateTest, WhatComesWithoutWaitingSaysNothing) {
  run(1, 60, false);
  EXPECT_EQ(rate_.per_second(), 0);
  run(50, 1, true);
  EXPECT_NEAR(rate_.per_second(), 50, 3);
  // An idle hour later seats come free no more slowly.
  run(0.1, 3600, false);
  EXPECT_NEAR(rate_.per_second(), 50, 3);
}

TEST_F(SeatRateTest, AMomentOfWaitingSaysNothing) {
  run(500, 0.1, true);
  EXPECT_EQ(rate_.per_second(), 0);
}

TEST_F(SeatRateTest, SeatsThatAreHeldLongAreCountedOverLong) {
  rate_.ended(absl::Seconds(60));
  for (int i = 0; i < 20; ++i) {
    run(0, 20, true);
    for (int seat = 0; seat < 4; ++seat) rate_.seated();
    rate_.observe(at(now_), true);
  }
  run(0, 19, true);
  EXPECT_NEAR(rate_.per_second(), 0.2, 0.05);
}

TEST_F(SeatRateTest, SeatsAreHeldAsLongAsOfLate) {
  rate_.ended(absl::Seconds(10));
  EXPECT_EQ(rate_.held(), absl::Seconds(10));
  for (int i = 0; i < 200; ++i) rate_.ended(absl::Seconds(2));
  EXPECT_NEAR(absl::ToDoubleSeconds(rate_.held()), 2, 0.01);
}

}  // namespace
}  // namespace lckv
