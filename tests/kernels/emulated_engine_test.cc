// The production scheduler, runner and model over the CUDA backend's sources on the host: the demo
// model gives the tokens that it gives over the plain reference, and nothing outside kernels and
// copies touches device memory.
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/reference_ops.h"
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

Tokens generate(std::unique_ptr<Ops> ops) {
  WorkerConfig config;
  config.model = "deploy/models/demo";
  config.dtype = NumberFormat::kFloat32;
  config.kv_cache_bytes = uint64_t{1} << 20;
  config.swap_bytes = 0;
  config.max_model_len = 64;
  config.max_num_batched_tokens = 16;
  config.max_num_seqs = 4;
  auto loaded = read_model(config);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  loaded->ops = std::move(ops);
  EXPECT_TRUE(open_weights(config, *loaded).ok());
  EXPECT_TRUE(load_weights(config, single_rank_collectives(), *loaded).ok());
  Scheduler scheduler(loaded->plan.scheduler, loaded->passes);
  auto runner = make_runner(*loaded);
  EXPECT_TRUE(runner.ok()) << runner.status();
  Tokens tokens;
  for (const SequenceSpec& spec : workload()) {
    const SequenceId id{tokens.size() + 1};
    tokens[raw(id)];
    EXPECT_TRUE(scheduler.submit(id, std::make_shared<const SequenceSpec>(spec), absl::Now()).ok());
  }
  while (const auto plan = scheduler.plan(absl::Now())) {
    StepTimes times;
    const auto result = (*runner)->run(*plan, times);
    if (!result.ok()) {
      ADD_FAILURE() << result.status();
      break;
    }
    for (const SequenceEvent& event : scheduler.commit(*result, absl::Now())) {
      if (event.kind == SequenceEvent::Kind::kToken) {
        tokens[raw(event.sequence)].push_back(event.token);
      }
    }
  }
  return tokens;
}

TEST(EmulatedEngine, GivesTheTokensOfTheReference) {
  const CudaOpsOptions options{.dtype = DType::kFloat32, .reproducible = true};
  const Tokens expected = generate(open_reference_ops(DType::kFloat32));
  EXPECT_EQ(expected.at(1).size(), 3U);
  EXPECT_EQ(expected.at(2).size(), 2U);
  EXPECT_EQ(generate(make_cuda_ops(options, {.num_multiprocessors = 2})), expected);
}

}  // namespace
}  // namespace lckv
