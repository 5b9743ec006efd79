#include "worker/service/seat_rate.h"

#include "gtest/gtest.h"

namespace lckv {
namespace {

absl::Time at(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

TEST(SeatRate, NothingIsKnownAtFirst) {
  const SeatRate rate;
  EXPECT_EQ(rate.per_second(at(1)), 0);
  EXPECT_EQ(rate.held(), absl::ZeroDuration());
}

TEST(SeatRate, ASteadyRateIsFoundSoonAndFollowed) {
  SeatRate rate;
  double now = 0;
  const auto run = [&](double per_second, double seconds) {
    for (const double end = now + seconds; now < end; now += 1 / per_second) rate.seated(at(now));
  };
  run(20, 2);
  EXPECT_NEAR(rate.per_second(at(now)), 20, 2);
  run(20, 20);
  EXPECT_NEAR(rate.per_second(at(now)), 20, 1);
  run(200, 25);
  EXPECT_NEAR(rate.per_second(at(now)), 200, 10);
  // Nobody was seated since.
  EXPECT_LT(rate.per_second(at(now + 30)), 1);
}

TEST(SeatRate, ABurstAtTheStartIsNoRate) {
  SeatRate rate;
  for (int i = 0; i < 16; ++i) rate.seated(at(0));
  EXPECT_LE(rate.per_second(at(0.001)), 18);
}

TEST(SeatRate, SeatsAreHeldAsLongAsOfLate) {
  SeatRate rate;
  rate.ended(absl::Seconds(10));
  EXPECT_EQ(rate.held(), absl::Seconds(10));
  for (int i = 0; i < 200; ++i) rate.ended(absl::Seconds(2));
  EXPECT_NEAR(absl::ToDoubleSeconds(rate.held()), 2, 0.01);
}

}  // namespace
}  // namespace lckv
