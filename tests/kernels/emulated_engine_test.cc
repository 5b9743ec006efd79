// The production scheduler, runner and model over the CUDA backend's sources on the host: they give
// the plain reference's tokens, and nothing outside kernels and copies touches device memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/reference_ops.h"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/kernels/emulated_engine.h"
#include "tests/support/rank_threads.h"
#include "worker/fit_memory.h"
#include "worker/scheduler/scheduler.h"
#include "worker/startup.h"

namespace lckv {
namespace {

// Sequences that between them use every way of drawing; the shorter prompt decodes while the longer
// one is still read.
std::vector<SequenceSpec> workload() {
  SequenceSpec plain{.prompt = {5, 17, 300}, .max_new_tokens = 3};
  plain.sampling.temperature = 0.0F;
  SequenceSpec drawn{.prompt = {1, 2, 3, 4, 5, 6, 7}, .max_new_tokens = 2};
  drawn.sampling = {.temperature = 0.8F,
                    .top_k = 40,
                    .top_p = 0.9F,
                    .repetition_penalty = 1.2F,
                    .presence_penalty = 0.5F,
                    .logit_bias = {{7, 1.5F}},
                    .seed = 11};
  drawn.num_logprobs = 2;
  drawn.min_new_tokens = 2;
  drawn.eos_token_ids = {2};
  return {plain, drawn};
}

// With an output matrix of its own; of two ranks' shares of the vocabulary one ends in padding.
WorkerConfig untied_config() {
  ConfigChanges changes = small_group();
  changes["\"tie_word_embeddings\": true"] = "\"tie_word_embeddings\": false";
  changes["\"vocab_size\": 4096"] = "\"vocab_size\": 4095";
  return changed_config("untied", changes);
}

using Tokens = std::map<uint64_t, std::vector<int32_t>>;

Tokens tokens_of(std::vector<std::unique_ptr<Ops>> ops,
                 const WorkerConfig& config = small_config()) {
  Tokens tokens;
  for (auto& [sequence, generated] : generate(config, workload(), std::move(ops))) {
    tokens[sequence] = std::move(generated.tokens);
  }
  return tokens;
}

TEST(EmulatedEngine, GivesTheTokensOfTheReference) {
  const Tokens expected = tokens_of(reference());
  EXPECT_EQ(expected.at(1).size(), 3U);
  EXPECT_EQ(expected.at(2).size(), 2U);
  EXPECT_EQ(tokens_of(devices(1)), expected);
  EXPECT_EQ(tokens_of(devices(2)), expected) << "two ranks";
  WorkerConfig sharing = small_config();
  sharing.allow_shared_device = true;
  EXPECT_EQ(tokens_of(devices(2, {.are_one = true}), sharing), expected) << "of one device";
  const emulated_cuda::NoPeerMemory none;
  EXPECT_EQ(tokens_of(devices(2)), expected) << "over NCCL";
}

// Made-up weights are zeros once they were given back: nothing is looked up in them afterwards.
TEST(EmulatedEngine, GivesTheTokensOfTheReferenceWithAnEmbeddingOfItsOwn) {
  const WorkerConfig config = untied_config();
  const Tokens expected = tokens_of(reference(), config);
  EXPECT_EQ(tokens_of(devices(1), config), expected);
  EXPECT_EQ(tokens_of(devices(2), config), expected) << "two ranks";
}

TEST(EmulatedEngine, ATiedEmbeddingTakesNoMemoryOfItsOwn) {
  const auto weight_bytes = [](const WorkerConfig& config) {
    auto loaded = load_on_device(config);
    const int64_t values = int64_t{loaded.config.vocabulary_size} * loaded.config.hidden_size;
    return std::pair(loaded.weight_bytes, static_cast<uint64_t>(values) * sizeof(float));
  };
  const auto [tied, tied_table] = weight_bytes(small_group_config());
  const auto [untied, untied_table] = weight_bytes(untied_config());
  EXPECT_EQ(tied - tied_table, untied - 2 * untied_table);
}

uint64_t used(const Ops& ops) {
  const DeviceMemory memory = *ops.memory();
  return memory.total - memory.free;
}

// A runner on what fit_memory() leaves.
struct Fitted {
  LoadedModel loaded;
  const Ops* ops = nullptr;
  uint64_t share = 0;  // of the device's memory
  std::unique_ptr<ModelRunner> runner;
};

Fitted fit(WorkerConfig config, bool records_batches = false) {
  constexpr double kUtilization = 0.6;
  config.kv_cache_given = false;
  config.gpu_memory_utilization = kUtilization;
  Fitted fitted{.loaded = load_on_device(config, records_batches)};
  fitted.ops = fitted.loaded.ops.get();
  fitted.share =
      static_cast<uint64_t>(kUtilization * static_cast<double>(fitted.ops->memory()->total));
  const absl::Status status = fit_memory(config, fitted.loaded);
  EXPECT_TRUE(status.ok()) << status;
  auto runner = make_runner(fitted.loaded);
  EXPECT_TRUE(runner.ok()) << runner.status();
  fitted.runner = *std::move(runner);
  return fitted;
}

void expect_fit(const WorkerConfig& config) {
  const Fitted fitted = fit(config);
  EXPECT_GT(fitted.loaded.plan.geometry.num_blocks, 0);
  // All of its share but what is kept back is taken, to a few blocks; nothing beyond it is.
  EXPECT_LT(used(*fitted.ops), fitted.share);
  EXPECT_GT(used(*fitted.ops) + (uint64_t{80} << 20), fitted.share);
}

TEST(FitMemory, GivesTheBlocksWhatWeightsAndAFullStepLeave) { expect_fit(small_config()); }

// What blocks the trial has must not be taken for memory that is free without it.
TEST(FitMemory, CountsNothingOfTheTrialsBlocks) {
  WorkerConfig config = small_group_config();
  config.block_size = 4096;                    // a block takes 4 MiB
  config.kv_cache_bytes = uint64_t{64} << 20;  // to begin with
  config.max_num_batched_tokens = 20;
  config.max_num_seqs = 20;
  expect_fit(config);
}

// Prompts of a few tokens, each with so many more tokens than the one before it.
void serve(int32_t num_prompts, int32_t more_tokens, const LoadedModel& loaded,
           ModelRunner& runner) {
  Scheduler scheduler(loaded.plan.scheduler, loaded.passes);
  for (int32_t i = 0; i < num_prompts; ++i) {
    const auto spec = std::make_shared<const SequenceSpec>(
        SequenceSpec{.prompt = {i, i + 1, i + 2, i + 3}, .max_new_tokens = 1 + more_tokens * i});
    const SequenceId id{static_cast<uint64_t>(i) + 1};
    ASSERT_TRUE(scheduler.submit(id, spec, absl::Now()).ok());
  }
  while (const auto plan = scheduler.plan(absl::Now())) {
    StepTimes times;
    const auto result = runner.run(*plan, times);
    ASSERT_TRUE(result.ok()) << result.status();
    scheduler.commit(*result, absl::Now());
  }
}

// A walk has but a window's rows of each prompt: only many prompts make it full.
TEST(FitMemory, MeasuresWalksOfAllSeats) {
  WorkerConfig config = small_group_config();
  config.dtype = NumberFormat::kBFloat16;
  config.reproducible = Choice::kOn;
  config.prefill_lookahead = 2;
  config.max_num_batched_tokens = 48;
  config.max_num_seqs = 12;
  const Fitted fitted = fit(config);
  const uint64_t before = used(*fitted.ops);
  serve(config.max_num_seqs, 0, fitted.loaded, *fitted.runner);
  EXPECT_EQ(used(*fitted.ops), before);
}

TEST(FitMemory, KeepsRoomForWhatTheDriverKeepsOfRecordedBatches) {
  WorkerConfig config = changed_config(
      "recorded",
      {{"0_6_6_6_6_6_6_7", "0_1"}, {"\"num_hidden_layers\": 8", "\"num_hidden_layers\": 2"}});
  config.max_num_batched_tokens = 8;
  config.max_num_seqs = 8;
  const Fitted fitted = fit(config, /*records_batches=*/true);
  const uint64_t before = used(*fitted.ops);
  serve(config.max_num_seqs, 2, fitted.loaded, *fitted.runner);
  EXPECT_GT(used(*fitted.ops), before + (uint64_t{64} << 20)) << "else nothing is shown";
  EXPECT_LT(used(*fitted.ops), fitted.share);
}

TEST(FitMemory, RanksTakeWhatAllHaveRoomFor) {
  const emulated_cuda::NoPeerMemory none;  // NCCL is what takes memory for sums
  WorkerConfig config = small_group_config();
  config.kv_cache_given = false;
  config.gpu_memory_utilization = 0.9;  // of the one memory that all emulated devices share
  const RendezvousStore store = rendezvous_in_memory();
  auto ops = devices(2, {.records_batches = false});
  std::vector<Rank> ranks(2);  // until both are done: one that goes is missed
  std::vector<int32_t> num_blocks(2);
  run_ranks(2, [&](int rank) {
    Rank& here = ranks[rank];
    here.ops = std::move(ops[rank]);
    load(here, {.rank = rank, .size = 2}, store, config);
    WorkerConfig own = config;
    const absl::Status status = fit_memory(own, here.loaded);
    ASSERT_TRUE(status.ok()) << status;
    num_blocks[rank] = here.loaded.plan.geometry.num_blocks;
  });
  EXPECT_GT(num_blocks[0], 0);
  EXPECT_EQ(num_blocks[1], num_blocks[0]);
  if (testing::Test::HasFailure()) return;
  // No sum of any step takes memory that was not seen.
  const int64_t most = config.max_num_batched_tokens;
  const int64_t hidden = ranks[0].loaded.config.hidden_size;
  std::vector<std::unique_ptr<DeviceBuffer>> rows;
  for (const Rank& rank : ranks) {
    rows.push_back(rank.loaded.ops->allocate(static_cast<size_t>(most * hidden) * sizeof(float)));
  }
  const uint64_t before = used(*ranks[0].loaded.ops);
  run_ranks(2, [&](int rank) {
    const LoadedModel& loaded = ranks[rank].loaded;
    loaded.ops->enter_thread();
    for (int64_t count = 1; count <= most; ++count) {
      ASSERT_TRUE(loaded.ranks->all_reduce(rows[rank]->floats(), count * hidden).ok());
    }
    ASSERT_TRUE(loaded.ranks->wait().ok());
  });
  EXPECT_EQ(used(*ranks[0].loaded.ops), before);
}

TEST(FitMemory, SaysWhatThereIsNoRoomFor) {
  WorkerConfig config = small_config();
  config.kv_cache_given = false;
  config.gpu_memory_utilization = 0.1;
  LoadedModel loaded = load_on_device(config);
  const absl::Status status = fit_memory(config, loaded);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("--gpu-memory-utilization 0.1 of 1 GiB"),
                             testing::HasSubstr("--max-num-batched-tokens 16")));
}

TEST(FitMemory, LeavesWhatWasAskedForAlone) {
  WorkerConfig config = small_config();
  LoadedModel loaded = load_on_device(config);
  ASSERT_TRUE(fit_memory(config, loaded).ok());
  EXPECT_EQ(config.kv_cache_bytes, uint64_t{1} << 20);
}

}  // namespace
}  // namespace lckv
