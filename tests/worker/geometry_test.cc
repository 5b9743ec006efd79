#include "worker/engine/geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "worker/model/tensor_shard.h"

namespace lckv {
namespace {

// TinyLlama-1.1B's shape: 22 layers, 4 KV heads of 64.
PassPlan tiny_llama(const std::string& layer_types) {
  const LayerMapOptions options{.num_layers = 22, .kv_heads = 4, .head_dim = 64, .num_passes = 9};
  return make_pass_plan(parse_layer_map(layer_types, options).value());
}

std::string w2() {
  std::string map = "0";
  for (int i = 0; i < 20; ++i) map += "_20";
  return map + "_21";
}

GeometryOptions serving() {
  return {.kv_cache_bytes = uint64_t{4} << 30,
          .swap_bytes = uint64_t{1} << 30,
          .kv_dtype = DType::kBFloat16,
          .hidden_size = 2048,
          .max_context = 2048,
          .max_num_seqs = 64};
}

TEST(Geometry, CapacityFollowsTheNumberOfCachedLayers) {
  const auto ordinary = plan_memory(tiny_llama(""), serving());
  const auto condensed = plan_memory(tiny_llama(w2()), serving());
  ASSERT_TRUE(ordinary.ok() && condensed.ok());
  EXPECT_EQ(ordinary->bytes_per_token, 22 * 1024);
  EXPECT_EQ(condensed->bytes_per_token, 3 * 1024);
  EXPECT_NEAR(static_cast<double>(ordinary->capacity_tokens), 4294967296.0 / 22528, 1);
  EXPECT_NEAR(static_cast<double>(condensed->capacity_tokens), 4294967296.0 / 3072, 1);
  EXPECT_EQ(condensed->block_bytes, 16 * 1024);
  EXPECT_EQ(condensed->num_blocks, 262144);
}

// Each of two ranks has half of the KV heads, and so room for twice the tokens; of eight ranks with
// four heads none has less than one.
TEST(Geometry, RanksShareOutSlots) {
  const PassPlan whole = tiny_llama(w2());
  const auto of_ranks = [&](int32_t size) {
    return plan_memory(make_pass_plan(shard_layers(whole.layers, size)), serving()).value();
  };
  EXPECT_EQ(of_ranks(1).bytes_per_token, 3 * 1024);
  EXPECT_EQ(of_ranks(2).bytes_per_token, 3 * 512);
  EXPECT_EQ(of_ranks(2).capacity_tokens, 2 * of_ranks(1).capacity_tokens);
  EXPECT_EQ(of_ranks(4).bytes_per_token, 3 * 256);
  EXPECT_EQ(of_ranks(8).bytes_per_token, 3 * 256);
}

TEST(Geometry, OnlyCyclicMapsHaveStagingAndAHostTier) {
  const auto ordinary = plan_memory(tiny_llama(""), serving());
  const auto condensed = plan_memory(tiny_llama(w2()), serving());
  ASSERT_TRUE(ordinary.ok() && condensed.ok());
  EXPECT_EQ(ordinary->staging_rows, 0);
  EXPECT_EQ(ordinary->staging_bytes, 0);
  EXPECT_EQ(ordinary->num_host_blocks, 0);
  EXPECT_EQ(condensed->staging_rows, 2048 + 64);
  // Input and output in float32, and KV twice: one unit, read upward.
  EXPECT_EQ(condensed->staging_bytes, (2048 + 64) * (2 * 2048 * 4 + 2 * 1024));
  EXPECT_EQ(condensed->num_host_blocks, 65536);
}

TEST(Geometry, SmallerSlotsShareTheBlocksBytes) {
  LayerPlan layers;
  layers.layers = {{.source = 0, .kv_heads = 4, .head_dim = 64},
                   {.source = 1, .kv_heads = 1, .head_dim = 64},
                   {.source = 2, .kv_heads = 3, .head_dim = 64}};
  GeometryOptions options = serving();
  options.block_size = 8;
  const auto geometry = plan_memory(make_pass_plan(layers), options);
  ASSERT_TRUE(geometry.ok());
  EXPECT_EQ(geometry->block_bytes, 8 * 1024);
  EXPECT_THAT(geometry->slots_per_block, testing::ElementsAre(8, 32, 8));
  EXPECT_EQ(geometry->blocks_of(33), 5 + 2 + 5);
  // 32 tokens take 4 + 1 + 4 blocks.
  EXPECT_EQ(geometry->capacity_tokens, int64_t{geometry->num_blocks} * 32 / 9);
}

TEST(Geometry, ErrorsNameTheFlag) {
  const PassPlan passes = tiny_llama(w2());
  const auto message = [&passes](GeometryOptions options) {
    return std::string(plan_memory(passes, options).status().message());
  };
  GeometryOptions options = serving();
  options.block_size = 12;
  EXPECT_THAT(message(options), testing::StartsWith("--block-size: 12 "));
  options = serving();
  options.kv_cache_bytes = 2 * 16 * 1024;
  EXPECT_THAT(message(options), testing::StartsWith("--kv-cache-memory: 32768 bytes"));
  options = serving();
  options.staging_rows = 100;
  options.window_rows = 512;
  EXPECT_THAT(message(options), testing::StartsWith("--staging-rows: 100 "));
}

}  // namespace
}  // namespace lckv
