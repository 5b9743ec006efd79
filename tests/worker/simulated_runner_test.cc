// The real scheduler over a simulated device: every request gets its own tokens, whatever runs
// beside it.
#include "worker/sim/simulated_runner.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/local_replica.h"
#include "worker/scheduler/scheduler.h"
#include "worker/startup.h"

namespace lckv {
namespace {

using ::testing::Each;
using ::testing::Ne;

// Takes no time at all.
DeviceProfile instant_device() {
  return {.name = "instant",
          .memory_bytes = 1e15,
          .memory_bytes_per_second = 1e18,
          .bfloat16_flops_per_second = 1e18,
          .float32_flops_per_second = 1e18,
          .host_bytes_per_second = 1e18,
          .peer_bytes_per_second = 1e18};
}

class SimulatedReplica {
 public:
  explicit SimulatedReplica(const std::string& model, const DeviceProfile& device,
                            uint64_t kv_cache_bytes = 64 << 20) {
    WorkerConfig config{.model = model,
                        .dtype = NumberFormat::kBFloat16,
                        .kv_cache_bytes = kv_cache_bytes,
                        .max_num_seqs = 4,
                        .max_num_batched_tokens = 64};
    loaded_ = std::make_unique<LoadedModel>(read_model(config).value());
    scheduler_ = std::make_unique<Scheduler>(loaded_->plan.scheduler, loaded_->passes);
    runner_ = std::make_unique<SimulatedRunner>(
        SimulatedRunnerOptions{.max_num_seqs = config.max_num_seqs,
                               .vocabulary = loaded_->config.vocabulary_size,
                               .num_groups = loaded_->passes.num_groups()},
        StepCost(device, loaded_->config, loaded_->passes, {}));
  }

  void submit(uint64_t id, SequenceSpec spec) {
    const auto shared = std::make_shared<const SequenceSpec>(std::move(spec));
    ASSERT_TRUE(scheduler_->submit(SequenceId{id}, shared, absl::Now()).ok());
  }
  bool step() {
    auto plan = scheduler_->plan(absl::Now());
    if (!plan) return false;
    ++num_steps_;
    StepTimes times;
    const StepResult result = runner_->run(*plan, times).value();
    for (const SequenceEvent& event : scheduler_->commit(result, absl::Now())) {
      if (event.kind == SequenceEvent::Kind::kToken) {
        tokens_[raw(event.sequence)].push_back(event.token);
      }
    }
    return true;
  }
  std::vector<int32_t> run_alone(SequenceSpec spec) {
    submit(1, std::move(spec));
    while (step()) {
    }
    return tokens_[1];
  }
  SimulatedRunner& runner() { return *runner_; }
  const std::vector<int32_t>& tokens(uint64_t id) { return tokens_[id]; }
  int num_steps() const { return num_steps_; }
  SchedulerLoad load() const { return scheduler_->load(); }
  int32_t vocabulary() const { return loaded_->config.vocabulary_size; }

 private:
  std::unique_ptr<LoadedModel> loaded_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<SimulatedRunner> runner_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  int num_steps_ = 0;
};

SequenceSpec random_spec(uint64_t seed) {
  std::mt19937_64 random(seed);
  SequenceSpec spec;
  spec.prompt = random_tokens(seed, 1 + static_cast<int32_t>(random() % 150), 1000);
  spec.max_new_tokens = 1 + static_cast<int32_t>(random() % 60);
  spec.sampling.temperature = random() % 2 == 0 ? 0.0F : 1.0F;
  spec.sampling.seed = random();
  spec.eos_token_ids = {2};
  return spec;
}

class SimulatedRunnerTest : public testing::TestWithParam<const char*> {};

TEST_P(SimulatedRunnerTest, TokensDependOnTheRequestAlone) {
  // Little memory: some are copied to the host and back, or start again.
  SimulatedReplica crowd(GetParam(), instant_device(), 1 << 20);
  constexpr uint64_t kNumRequests = 24;
  for (uint64_t id = 1; id <= kNumRequests; ++id) crowd.submit(id, random_spec(id));
  while (crowd.step()) {
  }
  for (uint64_t id = 1; id <= kNumRequests; ++id) {
    SCOPED_TRACE(testing::Message() << "request " << id);
    const SequenceSpec spec = random_spec(id);
    const std::vector<int32_t> alone =
        SimulatedReplica(GetParam(), instant_device()).run_alone(spec);
    EXPECT_EQ(static_cast<int32_t>(alone.size()), spec.max_new_tokens);
    EXPECT_EQ(crowd.tokens(id), alone);
    EXPECT_THAT(alone, Each(Ne(2)));
  }
}

TEST_P(SimulatedRunnerTest, AResumedRequestGoesOnWithTheSameTokens) {
  SequenceSpec spec = random_spec(7);
  spec.max_new_tokens = 40;
  const std::vector<int32_t> whole = SimulatedReplica(GetParam(), instant_device()).run_alone(spec);
  ASSERT_EQ(whole.size(), 40U);
  spec.resumed.assign(whole.begin(), whole.begin() + 13);
  const std::vector<int32_t> rest = SimulatedReplica(GetParam(), instant_device()).run_alone(spec);
  EXPECT_EQ(rest, std::vector<int32_t>(whole.begin() + 13, whole.end()));
}

TEST_P(SimulatedRunnerTest, APromptTakesStepsAsTheRealModelDoes) {
  SequenceSpec spec = random_spec(3);
  spec.prompt = random_tokens(3, 60, 1000);
  spec.max_new_tokens = 1;
  SimulatedReplica replica(GetParam(), instant_device());
  replica.run_alone(spec);
  EXPECT_LE(replica.num_steps(), 4);
}

TEST_P(SimulatedRunnerTest, SeedsMatterWhereTheyWould) {
  SequenceSpec spec = random_spec(3);
  spec.max_new_tokens = 20;
  const auto with = [&](float temperature, uint64_t seed) {
    spec.sampling.temperature = temperature;
    spec.sampling.seed = seed;
    return SimulatedReplica(GetParam(), instant_device()).run_alone(spec);
  };
  EXPECT_EQ(with(0, 1), with(0, 2));
  EXPECT_NE(with(1, 1), with(1, 2));
}

TEST_P(SimulatedRunnerTest, LogprobsHaveTheirForm) {
  SimulatedReplica replica(GetParam(), instant_device());
  SequenceSpec spec = random_spec(5);
  spec.num_logprobs = 3;
  spec.num_prompt_logprobs = 2;
  EXPECT_EQ(static_cast<int32_t>(replica.run_alone(spec).size()), spec.max_new_tokens);
}

TEST_P(SimulatedRunnerTest, AStepTakesItsTimeAndShowsThatItGoesOn) {
  DeviceProfile slow = instant_device();
  slow.step_overhead = absl::Milliseconds(250);
  SimulatedReplica replica(GetParam(), slow);
  int num_signs = 0;
  replica.runner().set_before_layer([&num_signs] { ++num_signs; });
  SequenceSpec spec = random_spec(5);
  spec.prompt.resize(1);
  spec.max_new_tokens = 1;
  const absl::Time began = absl::Now();
  replica.run_alone(spec);
  EXPECT_GE(absl::Now() - began, replica.num_steps() * slow.step_overhead);
  EXPECT_GE(num_signs, 2 * replica.num_steps());
}

INSTANTIATE_TEST_SUITE_P(Maps, SimulatedRunnerTest,
                         testing::Values("tests/bench/models/demo-ordinary", "deploy/models/demo"),
                         [](const auto& info) {
                           return std::string(info.param).find("ordinary") == std::string::npos
                                      ? "lckv"
                                      : "ordinary";
                         });

}  // namespace
}  // namespace lckv
