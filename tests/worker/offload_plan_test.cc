// Which layers stay in host memory.
#include "worker/model/offload_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace lckv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(OffloadPlan, FreesWhatIsAskedForAndNoLayerMore) {
  const std::vector<uint64_t> layers(16, 100);
  // Two more than are freed: the slots take as much.
  const std::vector<std::pair<uint64_t, size_t>> expected = {
      {1, 3}, {100, 3}, {101, 4}, {600, 8}, {1400, 16}};
  for (const auto& [bytes, count] : expected) {
    const OffloadPlan plan = plan_offload(layers, bytes);
    EXPECT_EQ(plan.layers.size(), count) << bytes;
    EXPECT_EQ(plan.host_bytes, count * 100);
    EXPECT_EQ(plan.slot_bytes, 100U);
    EXPECT_GE(plan.freed_bytes(), bytes);
  }
}

TEST(OffloadPlan, SpreadsThemEvenly) {
  const std::vector<uint64_t> layers(12, 100);
  EXPECT_THAT(plan_offload(layers, 200).layers, ElementsAre(1, 4, 7, 10));
  EXPECT_THAT(plan_offload(layers, 400).layers, ElementsAre(1, 3, 5, 7, 9, 11));
  for (uint64_t bytes = 1; bytes <= 1000; bytes += 100) {
    const std::vector<int32_t> chosen = plan_offload(layers, bytes).layers;
    int32_t nearest = 12;
    int32_t farthest = 0;
    for (size_t i = 0; i < chosen.size(); ++i) {
      // Around the end too: the first is fetched behind the last.
      const int32_t next = i + 1 < chosen.size() ? chosen[i + 1] : chosen[0] + 12;
      nearest = std::min(nearest, next - chosen[i]);
      farthest = std::max(farthest, next - chosen[i]);
    }
    EXPECT_LE(farthest - nearest, 1) << bytes;
  }
}

TEST(OffloadPlan, TakesNoMoreThanAll) {
  const OffloadPlan plan = plan_offload(std::vector<uint64_t>(4, 100), 1 << 20);
  EXPECT_THAT(plan.layers, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(plan.freed_bytes(), 200U);
}

TEST(OffloadPlan, TakesNoneWhereItWouldFreeNothing) {
  const std::vector<uint64_t> layers(8, 100);
  EXPECT_THAT(plan_offload(layers, 0).layers, IsEmpty());
  EXPECT_THAT(plan_offload(std::vector<uint64_t>(2, 100), 1).layers, IsEmpty());
  const OffloadPlan none = plan_offload(std::vector<uint64_t>{10, 200, 10}, 1);
  EXPECT_THAT(none.layers, IsEmpty());
  EXPECT_EQ(none.freed_bytes(), 0U);
}

TEST(OffloadPlan, SlotsHoldTheLargestOfThoseChosen) {
  const OffloadPlan plan = plan_offload(std::vector<uint64_t>{100, 120, 100, 100, 100, 120}, 250);
  EXPECT_THAT(plan.layers, ElementsAre(0, 1, 3, 4, 5));
  EXPECT_EQ(plan.slot_bytes, 120U);
  EXPECT_EQ(plan.freed_bytes(), 540U - 240U);
}

}  // namespace
}  // namespace lckv
