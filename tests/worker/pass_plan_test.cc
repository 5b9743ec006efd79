#include "worker/kv/pass_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "worker/kv/layer_plan.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;

PassPlan plan_of(const std::string& layer_types) {
  const auto count = static_cast<int32_t>(std::count(layer_types.begin(), layer_types.end(), '_'));
  auto plan = parse_layer_map(layer_types, {.num_layers = count + 1,
                                            .kv_heads = 1,
                                            .head_dim = 16,
                                            .sliding_window = 5,
                                            .num_passes = 9});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return make_pass_plan(*std::move(plan));
}

// Ranges as text: "0-1 (1-7) 7-8", groups in brackets.
std::string ranges(const PassPlan& plan) {
  std::string text;
  for (size_t k = 0; k < plan.ordinary.size(); ++k) {
    const LayerRange& range = plan.ordinary[k];
    text += std::to_string(range.begin) + "-" + std::to_string(range.end);
    if (k == plan.groups.size()) break;
    const LayerRange& group = plan.groups[k].layers;
    text += " (" + std::to_string(group.begin) + "-" + std::to_string(group.end) + ") ";
  }
  return text;
}

TEST(PassPlan, CutsAsTheOfficialIterationPlanDoes) {
  EXPECT_EQ(ranges(plan_of("0_6_6_6_6_6_6_7")), "0-1 (1-7) 7-8");
  EXPECT_EQ(ranges(plan_of("0_3_3_3_3_3_3_7")), "0-1 (1-4) 4-8");
  EXPECT_EQ(ranges(plan_of("0_0_0_5_5_5_8_8_8")), "0-3 (3-6) 6-6 (6-9) 9-9");
  EXPECT_EQ(ranges(plan_of("2_2_2_5_5_5_6_7")), "0-0 (0-3) 3-3 (3-6) 6-8");
  EXPECT_EQ(ranges(plan_of("7_7_7_7_7_7_7_7")), "0-0 (0-8) 8-8");
  EXPECT_EQ(ranges(plan_of("0_0_2_2_4_4_6_6")), "0-8");
  EXPECT_EQ(ranges(plan_of("0_1_2_2_2_2")), "0-6");
  // The group grows while layers inside read further up.
  EXPECT_EQ(ranges(plan_of("0_2_4_3_5_5_6")), "0-1 (1-6) 6-7");
}

TEST(PassPlan, NamesUnitsReadersAndWindows) {
  const PassPlan plan = plan_of("0s_4s_4_1_4_0_1s");
  EXPECT_EQ(ranges(plan), "0-1 (1-5) 5-7");
  EXPECT_THAT(plan.unit_of_layer, ElementsAre(0, 1, -1, -1, 2, -1, -1));
  ASSERT_EQ(plan.num_groups(), 1);
  EXPECT_THAT(plan.groups[0].units, ElementsAre(UnitId{1}, UnitId{2}));
  EXPECT_THAT(plan.groups[0].units_read_upward, ElementsAre(UnitId{2}));
  EXPECT_EQ(plan.num_passes, 9);
  const UnitPlan& lowest = plan.units[0];
  EXPECT_EQ(lowest.range, 0);
  ASSERT_EQ(lowest.readers.size(), 2U);
  EXPECT_EQ(lowest.readers[0].window, 5);
  EXPECT_EQ(lowest.readers[1].range, 2);
  EXPECT_EQ(lowest.readers[1].window, 0);
  const UnitPlan& target = plan.units[2];
  EXPECT_EQ(target.range, 1);
  ASSERT_EQ(target.readers.size(), 1U);
  EXPECT_EQ(target.readers[0].window, 0) << "one of the readers has no window";
}

// Range number of each layer, straight from the definition: a group holds layer l if some layer at
// or below reads one at or above, the two joined.
std::vector<int32_t> naive_ranges(const LayerPlan& layers) {
  const int32_t count = layers.num_layers();
  std::vector<int32_t> range_of(count);
  int32_t range = 0;
  for (int32_t layer = 0; layer < count;) {
    if (!layers.is_cyclic(layer)) {
      range_of[layer++] = range;
      continue;
    }
    std::set<int32_t> group = {layer};
    for (bool grew = true; grew;) {
      grew = false;
      for (const int32_t member : std::set<int32_t>(group)) {
        for (int32_t up = layer; up <= layers.layers[member].source; ++up) {
          grew = group.insert(up).second || grew;
        }
      }
    }
    for (const int32_t member : group) range_of[member] = range + 1;
    layer = *group.rbegin() + 1;
    range += 2;
  }
  return range_of;
}

void expect_plan_matches(const PassPlan& plan) {
  const LayerPlan& layers = plan.layers;
  const std::vector<int32_t> range_of = naive_ranges(layers);
  ASSERT_EQ(plan.ordinary.size(), plan.groups.size() + 1);
  int32_t next = 0;
  for (int32_t range = 0; range <= 2 * plan.num_groups(); ++range) {
    const LayerRange cut =
        range % 2 == 0 ? plan.ordinary[range / 2] : plan.groups[range / 2].layers;
    ASSERT_EQ(cut.begin, next);
    if (range % 2 == 1) {
      ASSERT_LT(cut.begin, cut.end);
    }
    for (int32_t layer = cut.begin; layer < cut.end; ++layer) {
      ASSERT_EQ(range_of[layer], range);
      ASSERT_TRUE(range % 2 == 1 || !layers.is_cyclic(layer));
    }
    next = cut.end;
  }
  ASSERT_EQ(next, layers.num_layers());

  for (int32_t u = 0; u < plan.num_units(); ++u) {
    const UnitPlan& unit = plan.units[u];
    ASSERT_EQ(unit.range, range_of[unit.layer]);
    std::set<int32_t> reading_ranges;
    bool read_upward = false;
    for (int32_t layer = 0; layer < layers.num_layers(); ++layer) {
      if (layers.layers[layer].source != unit.layer) continue;
      ASSERT_EQ(raw(plan.source_unit(layer)), u);
      ASSERT_GE(range_of[layer], unit.range) << "no range reads a later one";
      reading_ranges.insert(range_of[layer]);
      read_upward = read_upward || layer < unit.layer;
    }
    ASSERT_EQ(reading_ranges.size(), unit.readers.size());
    for (const UnitReader& reader : unit.readers) {
      ASSERT_TRUE(reading_ranges.contains(reader.range));
      int32_t widest = -1;
      for (int32_t layer = 0; layer < layers.num_layers(); ++layer) {
        const LayerSpec& spec = layers.layers[layer];
        if (spec.source != unit.layer || range_of[layer] != reader.range) continue;
        widest = widest == 0 || spec.window == 0 ? 0 : std::max(widest, spec.window);
      }
      ASSERT_EQ(reader.window, widest);
    }
    if (unit.range % 2 == 0) continue;
    const CyclicGroup& group = plan.groups[unit.range / 2];
    const auto holds = [u](const std::vector<UnitId>& units) {
      return std::count(units.begin(), units.end(), UnitId{u}) == 1;
    };
    ASSERT_TRUE(holds(group.units));
    ASSERT_EQ(holds(group.units_read_upward), read_upward);
  }
}

TEST(PassPlan, AgreesWithTheDefinitionOnRandomMaps) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 3000; ++round) {
    const auto count = static_cast<int32_t>(1 + random() % 12);
    std::string map;
    for (int32_t layer = 0; layer < count; ++layer) {
      // Mostly near, so that maps with several groups and with none occur often.
      const auto reach = static_cast<int32_t>(random() % 4);
      const bool up = random() % 3 == 0;
      const int32_t source = std::clamp(layer + (up ? reach : -reach), 0, count - 1);
      if (layer > 0) map += '_';
      map += std::to_string(source);
      if (random() % 4 == 0) map += 's';
    }
    SCOPED_TRACE(map);
    expect_plan_matches(plan_of(map));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace lckv
