#include "tests/kernels/emulated_engine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_collectives.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/reference_ops.h"
#include "tests/kernels/emulated_cuda/streams.h"
#include "tests/support/rank_threads.h"
#include "worker/group/plan_frames.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {

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

WorkerConfig changed_config(const std::string& name, const ConfigChanges& changes) {
  const std::filesystem::path from = "deploy/models/demo";
  const std::filesystem::path to = std::filesystem::path(testing::TempDir()) / name;
  std::filesystem::create_directories(to);
  std::ifstream file(from / "config.json");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  for (const auto& [was, is] : changes) text.replace(text.find(was), was.size(), is);
  std::ofstream(to / "config.json") << text;
  WorkerConfig config = small_config();
  config.model = to;
  config.load_format = LoadFormat::kDummy;
  return config;
}

ConfigChanges small_group() {
  return {{"0_6_6_6_6_6_6_7", "1_1"}, {"\"num_hidden_layers\": 8", "\"num_hidden_layers\": 2"}};
}

WorkerConfig small_group_config() { return changed_config("small_group", small_group()); }

DeviceFallsBehind::DeviceFallsBehind() { emulated_cuda::let_ahead(emulated_cuda::Ahead::kCopies); }
DeviceFallsBehind::~DeviceFallsBehind() {
  emulated_cuda::let_ahead(emulated_cuda::Ahead::kKernels);
}

void load(Rank& rank, TensorShard shard, const RendezvousStore& store, const WorkerConfig& config) {
  auto loaded = read_model(config, shard);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  rank.loaded = *std::move(loaded);
  rank.loaded.ops = std::move(rank.ops);
  ASSERT_TRUE(open_weights(config, rank.loaded).ok());
  auto ranks = single_rank_collectives();
  if (shard.size > 1) {
    rank.loaded.ops->enter_thread();
    auto connected = connect_cuda_ranks({.rank = shard.rank,
                                         .size = shard.size,
                                         .life = "test",
                                         .store = store,
                                         .reproducible = true,
                                         .shares_device = config.allow_shared_device,
                                         .timeout = absl::Seconds(60),
                                         .call_timeout = absl::Seconds(60)},
                                        *rank.loaded.ops);
    ASSERT_TRUE(connected.ok()) << connected.status();
    ranks = *std::move(connected);
  }
  ASSERT_TRUE(load_weights(config, std::move(ranks), rank.loaded).ok());
}

std::vector<std::unique_ptr<Ops>> devices(int count, const DeviceChoice& choice) {
  std::vector<std::unique_ptr<Ops>> ops;
  for (int i = 0; i < count; ++i) {
    ops.push_back(make_cuda_ops({.device = choice.are_one ? 0 : i,
                                 .dtype = DType::kFloat32,
                                 .reproducible = choice.reproducible,
                                 .records_batches = choice.records_batches},
                                {.num_multiprocessors = 2}));
  }
  return ops;
}

std::vector<std::unique_ptr<Ops>> reference() {
  std::vector<std::unique_ptr<Ops>> ops;
  ops.push_back(open_reference_ops(DType::kFloat32));
  return ops;
}

LoadedModel load_on_device(const WorkerConfig& config, bool records_batches) {
  auto loaded = read_model(config);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  loaded->ops = make_cuda_ops(
      {.dtype = loaded->plan.dtype, .reproducible = true, .records_batches = records_batches},
      {.num_multiprocessors = 2});
  EXPECT_TRUE(open_weights(config, *loaded).ok());
  EXPECT_TRUE(load_weights(config, single_rank_collectives(), *loaded).ok());
  return *std::move(loaded);
}

namespace {

void take(const SequenceEvent& event, Generated& generated) {
  if (event.kind == SequenceEvent::Kind::kToken) generated.tokens.push_back(event.token);
  if (!event.logprob.has_value()) return;
  generated.logprobs.push_back(event.logprob->own);
  const std::vector<float>& top = event.logprob->top_logprobs;
  generated.logprobs.insert(generated.logprobs.end(), top.begin(), top.end());
}

}  // namespace

std::map<uint64_t, Generated> generate(const WorkerConfig& config,
                                       const std::vector<SequenceSpec>& specs,
                                       std::vector<std::unique_ptr<Ops>> ops, SchedulerLoad* load) {
  const int size = static_cast<int>(ops.size());
  const RendezvousStore store = rendezvous_in_memory();
  std::vector<Rank> ranks(size);
  run_ranks(size, [&](int rank) {
    ranks[rank].ops = std::move(ops[rank]);
    lckv::load(ranks[rank], {.rank = rank, .size = size}, store, config);
    auto runner = make_runner(ranks[rank].loaded);
    ASSERT_TRUE(runner.ok()) << runner.status();
    ranks[rank].runner = *std::move(runner);
  });
  const int max_launched = ranks[0].runner->max_launched();
  SchedulerOptions options = ranks[0].loaded.plan.scheduler;
  options.max_uncommitted_plans = max_launched;
  Scheduler scheduler(options, ranks[0].loaded.passes);
  std::map<uint64_t, Generated> generated;
  for (const SequenceSpec& spec : specs) {
    const SequenceId id{generated.size() + 1};
    generated[raw(id)];
    EXPECT_TRUE(scheduler.submit(id, std::make_shared<const SequenceSpec>(spec), absl::Now()).ok());
  }
  for (int num_launched = 0;;) {
    while (num_launched < max_launched) {
      const auto plan = scheduler.plan(absl::Now());
      if (!plan.has_value()) break;
      run_ranks(size, [&](int rank) {
        StepTimes unseen;
        const absl::Status status = ranks[rank].runner->launch(*plan, unseen);
        ASSERT_TRUE(status.ok()) << status;
      });
      ++num_launched;
    }
    if (num_launched == 0 || testing::Test::HasFailure()) break;
    std::vector<StepResult> results(size);
    run_ranks(size, [&](int rank) {
      StepTimes unseen;
      auto result = ranks[rank].runner->collect(unseen);
      ASSERT_TRUE(result.ok()) << result.status();
      results[rank] = *std::move(result);
    });
    if (testing::Test::HasFailure()) break;
    --num_launched;
    for (const StepResult& result : results) EXPECT_EQ(digest_of(result), digest_of(results[0]));
    for (const SequenceEvent& event : scheduler.commit(results[0], absl::Now())) {
      take(event, generated[raw(event.sequence)]);
    }
  }
  if (load != nullptr) *load = scheduler.load();
  return generated;
}

}  // namespace lckv
