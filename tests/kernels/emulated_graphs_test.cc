// Recorded batches change no bit: the engine over the emulated device, with and without them.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/kernels/emulated_engine.h"

namespace lckv {
namespace {

// Prompts of different lengths that end after different times: batches grow and shrink.
std::vector<SequenceSpec> workload() {
  std::vector<SequenceSpec> specs;
  for (const auto& [length, num_tokens] : {std::pair(2, 7), {5, 3}, {1, 5}}) {
    SequenceSpec spec{.max_new_tokens = num_tokens, .num_logprobs = 5};
    for (int i = 0; i < length; ++i) spec.prompt.push_back((37 * i + 11 * length) % 300);
    spec.sampling.temperature = 0.0F;
    specs.push_back(std::move(spec));
  }
  return specs;
}

WorkerConfig four_layers(const std::string& map) {
  return changed_config(
      "four_layers_" + map,
      {{"0_6_6_6_6_6_6_7", map}, {"\"num_hidden_layers\": 8", "\"num_hidden_layers\": 4"}});
}

// Prompts of other lengths, and other ends, find the same few batches.
void expect_same(const WorkerConfig& config, int num_ranks, DeviceChoice choice) {
  const int before = emulated_cuda::num_graph_launches();
  choice.records_batches = false;
  const auto expected = generate(config, workload(), devices(num_ranks, choice));
  EXPECT_EQ(emulated_cuda::num_graph_launches(), before);
  EXPECT_EQ(expected.at(1).tokens.size(), 7U);
  choice.records_batches = true;
  EXPECT_EQ(generate(config, workload(), devices(num_ranks, choice)), expected);
  EXPECT_GT(emulated_cuda::num_graph_launches(), before + 2 * num_ranks);
}

TEST(RecordedBatches, ChangeNoBitOfCyclicMaps) {
  expect_same(four_layers("0_2_2_3"), 1, {});
  expect_same(four_layers("0_2_2_3"), 1, {.reproducible = false});
}
TEST(RecordedBatches, ChangeNoBitOfOrdinaryMaps) { expect_same(four_layers("0_1_2_3"), 1, {}); }
TEST(RecordedBatches, ChangeNoBitOfRanksWithPeerMemory) {
  expect_same(four_layers("0_2_2_3"), 2, {});
}
TEST(RecordedBatches, ChangeNoBitOfRanksThatShareADevice) {
  WorkerConfig config = four_layers("0_2_2_3");
  config.allow_shared_device = true;
  expect_same(config, 2, {.are_one = true});
}
TEST(RecordedBatches, ChangeNoBitOfRanksOverNccl) {
  const emulated_cuda::NoPeerMemory none;
  expect_same(four_layers("0_2_2_3"), 2, {});
}

// What a layer in host memory is fetched for is not known when a batch is recorded.
TEST(RecordedBatches, AreNotRepeatedWithWeightsInHostMemory) {
  WorkerConfig config = four_layers("0_2_2_3");
  config.cpu_offload_gb = 1;
  const int before = emulated_cuda::num_graph_launches();
  EXPECT_EQ(generate(config, workload(), devices(1)).at(1).tokens.size(), 7U);
  EXPECT_EQ(emulated_cuda::num_graph_launches(), before);
}

}  // namespace
}  // namespace lckv
