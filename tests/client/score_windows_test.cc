#include "client/score_windows.h"

#include <numeric>

#include "gtest/gtest.h"

namespace lckv {
namespace {

std::vector<int> times_scored(size_t num_ids, const std::vector<ScoreWindow>& windows) {
  std::vector<int> times(num_ids, 0);
  for (const ScoreWindow& window : windows) {
    for (size_t i = window.first_scored; i < window.end; ++i) ++times[i];
  }
  return times;
}

TEST(ScoreWindows, ReferenceProtocolDropsTheRest) {
  const auto windows = cut_windows(12'600, {.context = 256, .stride = 255, .prefix = 1});
  ASSERT_TRUE(windows.ok());
  ASSERT_EQ(windows->size(), 49u);
  const std::vector<int> times = times_scored(12'600, *windows);
  EXPECT_EQ(std::accumulate(times.begin(), times.end(), 0), 12'495);
  EXPECT_EQ((*windows)[1].begin, 255u);
  EXPECT_EQ((*windows)[1].first_scored, 255u);
}

TEST(ScoreWindows, OverlapScoresEachTokenOnce) {
  for (const size_t stride : {1u, 3u, 7u, 10u}) {
    const auto windows = cut_windows(100, {.context = 11, .stride = stride, .prefix = 1});
    ASSERT_TRUE(windows.ok());
    const std::vector<int> times = times_scored(100, *windows);
    const size_t last = windows->back().end;
    EXPECT_GT(last + stride, 100u) << stride;
    for (size_t i = 0; i < 100; ++i) EXPECT_EQ(times[i], i < last ? 1 : 0) << stride << " " << i;
    for (const ScoreWindow& window : *windows) EXPECT_EQ(window.end - window.begin, 10u);
  }
}

TEST(ScoreWindows, WithoutPrefixTheFirstIdOfEachFreshWindowIsNotScored) {
  const auto windows = cut_windows(8, {.context = 4, .stride = 4, .prefix = 0});
  ASSERT_TRUE(windows.ok());
  EXPECT_EQ(times_scored(8, *windows), (std::vector<int>{0, 1, 1, 1, 0, 1, 1, 1}));
}

TEST(ScoreWindows, ShortTextIsOneWindow) {
  const auto windows = cut_windows(5, {.context = 256, .stride = 0, .prefix = 1});
  ASSERT_TRUE(windows.ok());
  ASSERT_EQ(windows->size(), 1u);
  EXPECT_EQ(times_scored(5, *windows), (std::vector<int>{1, 1, 1, 1, 1}));
}

TEST(ScoreWindows, RefusalsNameTheFlag) {
  const auto skipping = cut_windows(100, {.context = 11, .stride = 11, .prefix = 1});
  EXPECT_NE(skipping.status().message().find("--stride"), std::string::npos);
  const auto small = cut_windows(100, {.context = 2, .stride = 0, .prefix = 1});
  EXPECT_NE(small.status().message().find("--context"), std::string::npos);
  EXPECT_FALSE(cut_windows(0, {.context = 11, .stride = 0, .prefix = 1}).ok());
  EXPECT_FALSE(cut_windows(1, {.context = 11, .stride = 0, .prefix = 0}).ok());
}

}  // namespace
}  // namespace lckv
