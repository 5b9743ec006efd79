// The production scheduler, runner and model over the CUDA backend's sources on the host: the demo
// model gives the tokens that it gives over the plain reference, and nothing outside kernels and
// copies touches device memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/nccl_collectives.h"
#include "kernels/reference_ops.h"
#include "tests/support/rank_threads.h"
#include "worker/fit_memory.h"
#include "worker/group/plan_frames.h"
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

using Tokens = std::map<uint64_t, std::vector<int32_t>>;

WorkerConfig small_config() {
  WorkerConfig config;
  config.model = "deploy/models/demo";
  config.dtype = NumberFormat::kFloat32;
  config.kv_cache_bytes = uint64_t{1} << 20;
  config.kv_cache_given = true;
  config.swap_bytes = 0;
  config.max_model_len = 64;
  config.max_num_batched_tokens = 16;
  config.max_num_seqs = 4;
  return config;
}

struct Rank {
  std::unique_ptr<Ops> ops;
  LoadedModel loaded;
  std::unique_ptr<ModelRunner> runner;
};

// The scheduler is the first rank's.
void load(Rank& rank, TensorShard shard, const RendezvousStore& store) {
  const WorkerConfig config = small_config();
  auto loaded = read_model(config, shard);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  rank.loaded = *std::move(loaded);
  rank.loaded.ops = std::move(rank.ops);
  ASSERT_TRUE(open_weights(config, rank.loaded).ok());
  auto ranks = single_rank_collectives();
  if (shard.size > 1) {
    auto connected = connect_nccl({.rank = shard.rank,
                                   .size = shard.size,
                                   .life = "test",
                                   .store = store,
                                   .reproducible = true,
                                   .timeout = absl::Seconds(60),
                                   .call_timeout = absl::Seconds(60)},
                                  *rank.loaded.ops);
    ASSERT_TRUE(connected.ok()) << connected.status();
    ranks = *std::move(connected);
  }
  ASSERT_TRUE(load_weights(config, std::move(ranks), rank.loaded).ok());
  auto runner = make_runner(rank.loaded);
  ASSERT_TRUE(runner.ok()) << runner.status();
  rank.runner = *std::move(runner);
}

// Each of the Ops is a rank's.
Tokens generate(std::vector<std::unique_ptr<Ops>> ops) {
  const int size = static_cast<int>(ops.size());
  const RendezvousStore store = rendezvous_in_memory();
  std::vector<Rank> ranks(size);
  run_ranks(size, [&](int rank) {
    ranks[rank].ops = std::move(ops[rank]);
    load(ranks[rank], {.rank = rank, .size = size}, store);
  });
  Scheduler scheduler(ranks[0].loaded.plan.scheduler, ranks[0].loaded.passes);
  Tokens tokens;
  for (const SequenceSpec& spec : workload()) {
    const SequenceId id{tokens.size() + 1};
    tokens[raw(id)];
    EXPECT_TRUE(scheduler.submit(id, std::make_shared<const SequenceSpec>(spec), absl::Now()).ok());
  }
  while (const auto plan = scheduler.plan(absl::Now())) {
    std::vector<StepResult> results(size);
    run_ranks(size, [&](int rank) {
      StepTimes times;
      auto result = ranks[rank].runner->run(*plan, times);
      ASSERT_TRUE(result.ok()) << result.status();
      results[rank] = *std::move(result);
    });
    if (testing::Test::HasFailure()) break;
    for (const StepResult& result : results) EXPECT_EQ(digest_of(result), digest_of(results[0]));
    for (const SequenceEvent& event : scheduler.commit(results[0], absl::Now())) {
      if (event.kind == SequenceEvent::Kind::kToken) {
        tokens[raw(event.sequence)].push_back(event.token);
      }
    }
  }
  return tokens;
}

std::vector<std::unique_ptr<Ops>> devices(int count) {
  std::vector<std::unique_ptr<Ops>> ops;
  for (int i = 0; i < count; ++i) {
    ops.push_back(make_cuda_ops({.dtype = DType::kFloat32, .reproducible = true},
                                {.num_multiprocessors = 2}));
  }
  return ops;
}

TEST(EmulatedEngine, GivesTheTokensOfTheReference) {
  std::vector<std::unique_ptr<Ops>> reference;
  reference.push_back(open_reference_ops(DType::kFloat32));
  const Tokens expected = generate(std::move(reference));
  EXPECT_EQ(expected.at(1).size(), 3U);
  EXPECT_EQ(expected.at(2).size(), 2U);
  EXPECT_EQ(generate(devices(1)), expected);
  EXPECT_EQ(generate(devices(2)), expected) << "two ranks";
}

LoadedModel load_on_device(const WorkerConfig& config) {
  auto loaded = read_model(config);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  loaded->ops = std::move(devices(1)[0]);
  EXPECT_TRUE(open_weights(config, *loaded).ok());
  EXPECT_TRUE(load_weights(config, single_rank_collectives(), *loaded).ok());
  return *std::move(loaded);
}

TEST(FitMemory, GivesTheBlocksWhatWeightsAndAFullStepLeave) {
  WorkerConfig config = small_config();
  config.kv_cache_given = false;
  config.gpu_memory_utilization = 0.6;
  LoadedModel loaded = load_on_device(config);
  ASSERT_TRUE(fit_memory(config, loaded).ok());
  const DeviceMemory before = *loaded.ops->memory();
  const MemoryGeometry geometry = loaded.plan.geometry;
  EXPECT_GT(geometry.num_blocks, 0);
  auto runner = make_runner(loaded);
  ASSERT_TRUE(runner.ok()) << runner.status();
  const ModelRunner::Parts parts = ModelRunner::take_apart(*std::move(runner));
  // All of its share but what is kept back is taken, to a few blocks; nothing beyond it is.
  const auto blocks = static_cast<uint64_t>(geometry.num_blocks * geometry.block_bytes);
  const auto share = static_cast<uint64_t>(0.6 * static_cast<double>(before.total));
  const uint64_t used = before.total - before.free + blocks;
  EXPECT_LT(used, share);
  EXPECT_GT(used + (uint64_t{80} << 20), share);
}

TEST(FitMemory, SaysWhatThereIsNoRoomFor) {
  WorkerConfig config = small_config();
  config.kv_cache_given = false;
  config.gpu_memory_utilization = 0.2;
  LoadedModel loaded = load_on_device(config);
  const absl::Status status = fit_memory(config, loaded);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("--gpu-memory-utilization 0.2 of 256 MiB"),
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
