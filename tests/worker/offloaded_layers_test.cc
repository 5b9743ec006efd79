// When offloaded layers are fetched, and into which slot: over operations that only note it.
#include "worker/model/offloaded_layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kernels/reference_ops.h"
#include "tests/support/probed_ops.h"

namespace lckv {
namespace {

using testing::ElementsAre;

class NumberedWeight final : public PackedWeight {
 public:
  explicit NumberedWeight(int32_t layer) : layer(layer) {}
  int64_t n() const override { return 1; }
  int64_t k() const override { return 1; }
  size_t bytes() const override { return 100 + layer; }
  const int32_t layer;
};

struct NotedSlot final : WeightSlot {
  size_t bytes = 0;
  int32_t layer = -1;
};

class NotingOps final : public ProbedOps {
 public:
  NotingOps() : ProbedOps(open_reference_ops(DType::kFloat32), 0) {}

  std::unique_ptr<WeightSlot> allocate_weight_slot(size_t bytes) override {
    auto slot = std::make_unique<NotedSlot>();
    slot->bytes = bytes;
    slots.push_back(slot.get());
    return slot;
  }
  void fetch(std::span<PackedWeight* const> weights, WeightSlot& slot) override {
    auto& noted = dynamic_cast<NotedSlot&>(slot);
    ASSERT_EQ(weights.size(), 1U);
    const int32_t layer = dynamic_cast<NumberedWeight&>(*weights.front()).layer;
    EXPECT_FALSE(holds(layer)) << "fetched again: " << layer;
    EXPECT_FALSE(running.has_value() && noted.layer == *running) << "read while it is filled";
    noted.layer = layer;
    fetched.push_back(layer);
  }
  bool holds(int32_t layer) const {
    return std::any_of(slots.begin(), slots.end(),
                       [layer](const NotedSlot* slot) { return slot->layer == layer; });
  }

  std::vector<NotedSlot*> slots;
  std::vector<int32_t> fetched;
  std::optional<int32_t> running;
};

class OffloadedLayersTest : public testing::Test {
 protected:
  OffloadedLayersTest() {
    std::vector<OffloadedLayer> layers;
    for (const int32_t layer : {1, 3, 5, 6}) {
      weights_.push_back(std::make_unique<NumberedWeight>(layer));
      layers.push_back({.layer = layer, .weights = {weights_.back().get()}});
    }
    layers_ = std::make_unique<OffloadedLayers>(std::move(layers), ops_);
  }

  // Runs layers [begin, end); tells how many came that were not under way.
  int run(int32_t begin, int32_t end) {
    int num_late = 0;
    for (int32_t layer = begin; layer < end; ++layer) {
      const bool is_offloaded = layer == 1 || layer == 3 || layer == 5 || layer == 6;
      if (is_offloaded && !ops_.holds(layer)) ++num_late;
      if (is_offloaded) ops_.running = layer;
      layers_->enter(layer);
      EXPECT_EQ(ops_.holds(layer), is_offloaded);
      ops_.running.reset();
      layers_->leave(layer);
    }
    return num_late;
  }
  std::vector<int32_t> take_fetched() { return std::exchange(ops_.fetched, {}); }

  NotingOps ops_;
  std::vector<std::unique_ptr<NumberedWeight>> weights_;
  std::unique_ptr<OffloadedLayers> layers_;
};

TEST_F(OffloadedLayersTest, TwoSlotsHoldAnyLayer) {
  ASSERT_EQ(ops_.slots.size(), 2U);
  for (const NotedSlot* slot : ops_.slots) EXPECT_EQ(slot->bytes, 106U);
  EXPECT_EQ(layers_->slot_bytes(), 212U);
}

TEST_F(OffloadedLayersTest, TheNextIsFetchedAsSoonAsASlotIsLeft) {
  EXPECT_THAT(take_fetched(), ElementsAre(1, 3));
  EXPECT_EQ(run(0, 2), 0);
  EXPECT_THAT(take_fetched(), ElementsAre(5)) << "behind layer 1, in its place";
  EXPECT_EQ(run(2, 8), 0);
  EXPECT_THAT(take_fetched(), ElementsAre(6, 1, 3)) << "the next step's";
  EXPECT_EQ(run(0, 8), 0);
  EXPECT_THAT(take_fetched(), ElementsAre(5, 6, 1, 3));
}

TEST_F(OffloadedLayersTest, ARangeThatRunsAgainAndAgainIsKnownOnceItHas) {
  run(0, 8);
  EXPECT_LE(run(2, 7), 1);  // layer 1 was expected
  EXPECT_LE(run(2, 7), 1);
  take_fetched();
  EXPECT_EQ(run(2, 7) + run(2, 7), 0);
  EXPECT_EQ(take_fetched().size(), 6U) << "each once a walk";
  EXPECT_LE(run(0, 8), 1);
  EXPECT_LE(run(0, 8), 1);
  take_fetched();
  EXPECT_EQ(run(0, 8), 0);
  EXPECT_EQ(take_fetched().size(), 4U);
}

TEST_F(OffloadedLayersTest, OneOrTwoThatRunAgainAndAgainStay) {
  run(2, 6);
  run(2, 6);
  take_fetched();
  EXPECT_EQ(run(2, 6) + run(2, 6), 0);
  EXPECT_TRUE(take_fetched().empty());
  run(5, 6);
  run(5, 6);
  take_fetched();
  EXPECT_EQ(run(5, 6), 0);
  EXPECT_TRUE(take_fetched().empty());
}

TEST_F(OffloadedLayersTest, WhatWasNotExpectedLeavesWhatComesAfterIt) {
  run(0, 8);
  run(0, 4);
  run(6, 8);  // without layer 5
  run(0, 4);
  take_fetched();
  EXPECT_EQ(run(5, 6), 1);
  EXPECT_THAT(take_fetched(), ElementsAre(5, 1)) << "layer 6 is still there";
}

TEST_F(OffloadedLayersTest, WhateverComesIsThereAndStaysWhileItRuns) {
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    const auto begin = static_cast<int32_t>(random() % 8);
    run(begin, begin + static_cast<int32_t>(random() % (9 - begin)));
  }
}

}  // namespace
}  // namespace lckv
