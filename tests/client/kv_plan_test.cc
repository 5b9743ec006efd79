#include "client/kv_plan.h"

#include "gtest/gtest.h"

namespace lckv {
namespace {

// TinyLlama's shape: 22 layers, 4 KV heads of 64.
LayerPlan tinyllama(const std::string& layer_types) {
  return *parse_layer_map(layer_types,
                          {.num_layers = 22, .kv_heads = 4, .head_dim = 64, .num_passes = 9});
}

TEST(KvPlan, CondensedMapHoldsTwentyTwoThirdsOfTheOrdinaryOne) {
  const LayerPlan condensed =
      tinyllama("0_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_20_21");
  const KvPlanOptions memory{.kv_cache_bytes = uint64_t{4} << 30, .length = 2048};
  const KvPlan plan = plan_kv(condensed, memory);
  const KvPlan ordinary = plan_kv(ordinary_layers(condensed), memory);
  EXPECT_EQ(plan.num_cached_layers, 3);
  EXPECT_EQ(plan.bytes_per_token, 3 * 2 * 4 * 64 * 2);
  EXPECT_EQ(ordinary.bytes_per_token, 22 * 2 * 4 * 64 * 2);
  EXPECT_EQ(plan.capacity_tokens, (int64_t{4} << 30) / plan.bytes_per_token);
  EXPECT_NEAR(static_cast<double>(plan.capacity_tokens) / ordinary.capacity_tokens, 22.0 / 3, 1e-3);
  EXPECT_EQ(plan.batch, plan.capacity_tokens / 2048);
}

TEST(KvPlan, PartlyFilledBlocksCount) {
  const LayerPlan plan = tinyllama("");
  const KvPlan short_ones = plan_kv(plan, {.kv_cache_bytes = 22 * 10 * 16 * 1024, .length = 1});
  EXPECT_EQ(short_ones.num_blocks, 220);
  EXPECT_EQ(short_ones.batch, 10);
  EXPECT_EQ(short_ones.capacity_tokens, 160);
}

TEST(KvPlan, SmallerUnitsHoldAPowerOfTwoOfSlots) {
  LayerPlan plan = tinyllama("");
  plan.layers.resize(2);
  plan.layers[1].kv_heads = 1;  // a quarter of the slot: 64 slots where the other has 16
  const KvPlan cut = plan_kv(plan, {.kv_cache_bytes = 5 * 16 * 1024, .length = 64});
  EXPECT_EQ(cut.num_blocks, 5);
  EXPECT_EQ(cut.batch, 1);
  EXPECT_EQ(cut.capacity_tokens, 64);
}

}  // namespace
}  // namespace lckv
