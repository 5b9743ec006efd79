#include "worker/kv/layer_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

std::vector<int32_t> sources(const LayerPlan& plan) {
  std::vector<int32_t> result;
  for (const LayerSpec& layer : plan.layers) result.push_back(layer.source);
  return result;
}

std::vector<bool> self_excluding(const LayerPlan& plan) {
  std::vector<bool> result;
  for (const LayerSpec& layer : plan.layers) result.push_back(layer.self_excluding);
  return result;
}

LayerMapOptions options(int32_t num_layers) {
  return {.num_layers = num_layers, .kv_heads = 2, .head_dim = 16, .num_passes = 9};
}

// "0_20x20_21" in the notation of notes: `n` times the same entry.
std::string repeated(const std::string& first, int n, const std::string& middle,
                     const std::string& last) {
  std::string map = first;
  for (int i = 0; i < n; ++i) map += "_" + middle;
  return map + "_" + last;
}

TEST(LayerMap, NullMeansEveryLayerReadsItself) {
  const auto plan = parse_layer_map("", options(3));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(sources(*plan), ElementsAre(0, 1, 2));
  EXPECT_THAT(self_excluding(*plan), ElementsAre(false, false, false));
  EXPECT_EQ(plan->num_passes, 1);
  EXPECT_FALSE(plan->has_cycles());
}

TEST(LayerMap, UpwardReadersExcludeThemselves) {
  const auto plan = parse_layer_map("0_3_3_3_2", options(5));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(self_excluding(*plan), ElementsAre(false, true, true, false, false));
  // Layer 2 computes KV because layer 4 reads it, although it reads another itself.
  EXPECT_THAT(plan->cached_layers(), ElementsAre(0, 2, 3));
  EXPECT_TRUE(plan->is_cached(2));
  EXPECT_FALSE(plan->is_cached(1));
  EXPECT_EQ(plan->num_passes, 9);
}

TEST(LayerMap, ForceNodiagExcludesEverywhere) {
  LayerMapOptions nodiag = options(3);
  nodiag.force_nodiag = true;
  const auto plan = parse_layer_map("0_0_2", nodiag);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(self_excluding(*plan), ElementsAre(true, true, true));
}

TEST(LayerMap, PublishedMapsHaveTheirUnits) {
  const auto w2 = parse_layer_map(repeated("0", 20, "20", "21"), options(22));
  ASSERT_TRUE(w2.ok()) << w2.status();
  EXPECT_THAT(w2->cached_layers(), ElementsAre(0, 20, 21));
  const auto w10 =
      parse_layer_map("0_1_2_3_4_16_16_16_16_16_16_16_16_16_16_16_16_17_18_19_20_21", options(22));
  ASSERT_TRUE(w10.ok()) << w10.status();
  EXPECT_EQ(w10->cached_layers().size(), 11U);
}

TEST(LayerMap, YocoWithSlidingLayers) {
  LayerMapOptions windowed = options(6);
  windowed.sliding_window = 7;
  const auto plan = parse_layer_map("0s_1s_2_2_2_2", windowed);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<int32_t> windows;
  for (const LayerSpec& layer : plan->layers) windows.push_back(layer.window);
  EXPECT_THAT(windows, ElementsAre(7, 7, 0, 0, 0, 0));
  EXPECT_EQ(plan->num_passes, 1);
}

TEST(TargetCodes, MapsToSourcesAsTheFirstReleaseMeantThem) {
  const auto w2 = parse_target_codes(repeated("0", 19, "1", "2_0"), -2, options(22));
  ASSERT_TRUE(w2.ok()) << w2.status();
  const auto same = parse_layer_map(repeated("0", 20, "20", "21"), options(22));
  ASSERT_TRUE(same.ok());
  EXPECT_THAT(sources(*w2), ElementsAreArray(sources(*same)));
  for (const LayerSpec& layer : w2->layers) EXPECT_TRUE(layer.self_excluding);
  // A layer above the target reads downward.
  const auto above = parse_target_codes("0_2_1", 1, options(3));
  ASSERT_TRUE(above.ok()) << above.status();
  EXPECT_THAT(sources(*above), ElementsAre(0, 1, 1));
}

TEST(TargetCodes, NullMeansOwnKvWithoutDiagonal) {
  const auto plan = parse_target_codes("", -1, options(2));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(sources(*plan), ElementsAre(0, 1));
  EXPECT_THAT(self_excluding(*plan), ElementsAre(true, true));
}

TEST(ClaCodes, ReadsTheNearestLowerOwner) {
  const auto plan = parse_cla_codes("0_1_1_2_1_0", options(6));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(sources(*plan), ElementsAre(0, 0, 0, 3, 3, 5));
  EXPECT_THAT(self_excluding(*plan), ElementsAre(false, false, false, false, false, false));
}

struct BadMap {
  std::string layer_types;
  std::string message;
};

TEST(LayerMap, RefusesWithTheEntryAndWhatWouldBeRight) {
  const BadMap cases[] = {
      {"0_1", "layer_types: 2 entries for num_hidden_layers 3"},
      {"0_1_2_", "layer_types: 4 entries for num_hidden_layers 3"},
      {"0_1_3", "entry 2 \"3\" names an absent layer: there are 3"},
      {"0_x_2", "entry 1 \"x\" is not a layer index"},
      {"0_-1_2", "entry 1 \"-1\" is not a layer index"},
      {"0_1_", "entry 2 \"\" is not a layer index"},
      {"0_1ss_2", "entry 1 \"1ss\" is not a layer index"},
      {"0_s_2", "entry 1 \"s\" is not a layer index"},
      {"0_ 1_2", "entry 1 \" 1\" is not a layer index"},
      {"0_99999999999999999999_2", "entry 1 \"99999999999999999999\" is not a layer index"},
      {"0_1\n_2", "entry 1 \"1\\n\" is not a layer index"},
      {"0_1s_2", "sliding_window: must be at least 1"},
  };
  for (const BadMap& bad : cases) {
    const auto plan = parse_layer_map(bad.layer_types, options(3));
    ASSERT_FALSE(plan.ok()) << bad.layer_types;
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(bad.message));
  }
}

TEST(LayerMap, RefusesAbsurdPasses) {
  for (const int32_t passes : {0, -1, 1025}) {
    LayerMapOptions bad = options(2);
    bad.num_passes = passes;
    const auto plan = parse_layer_map("1_1", bad);
    ASSERT_FALSE(plan.ok()) << passes;
    EXPECT_THAT(std::string(plan.status().message()),
                HasSubstr("forward_passes + backward_passes: "));
  }
}

TEST(TargetCodes, RefusesMapsWithoutOneTarget) {
  const struct {
    std::string codes;
    int32_t target;
    std::string message;
  } cases[] = {
      {"0_1_0", -1, "0 targets (code 2); layers of code 1 need exactly one"},
      {"0_2_2", -1, "2 targets (code 2)"},
      {"0_1_2", 1, "target_layer: layer 1 has code 1"},
      {"0_1_2", 3, "target_layer: 3 is absent"},
      {"0_1_2", -4, "target_layer: -4 is absent"},
      {"0_3_2", -1, "entry 1 \"3\" is not one of 0, 1, 2"},
      {"0_2", -1, "2 entries for num_hidden_layers 3"},
  };
  for (const auto& bad : cases) {
    const auto plan = parse_target_codes(bad.codes, bad.target, options(3));
    ASSERT_FALSE(plan.ok()) << bad.codes;
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(bad.message));
  }
  const auto cla = parse_cla_codes("1_0_0", options(3));
  ASSERT_FALSE(cla.ok());
  EXPECT_THAT(std::string(cla.status().message()), HasSubstr("entry 0 \"1\" has no lower layer"));
}

}  // namespace
}  // namespace lckv
