// Steps that are launched while the one before runs, over the CUDA backend's sources on the host.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/reference_ops.h"
#include "tests/kernels/emulated_cuda/streams.h"
#include "tests/kernels/emulated_engine.h"
#include "worker/scheduler/scheduler.h"
#include "worker/startup.h"

namespace lckv {
namespace {

// The only rank, which waits in vain.
class WaitsInVain final : public Collectives {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  absl::Status all_reduce(float*, int64_t) override { return absl::OkStatus(); }
  absl::Status all_gather(const float* data, int64_t count, float* out) override {
    return alone_->all_gather(data, count, out);
  }
  absl::Status broadcast(void*, int64_t, int) override { return absl::OkStatus(); }
  absl::Status barrier() override { return absl::OkStatus(); }
  absl::Status wait() override { return absl::DeadlineExceededError("no peer"); }
  absl::Status wait_for(absl::FunctionRef<bool()>) override { return wait(); }

 private:
  const std::unique_ptr<Collectives> alone_ = single_rank_collectives();
};

// A peer that stands still is met where it is waited for, not in what reads the device.
TEST(ModelRunner, WaitsForRanksBeforeItReadsTheDevice) {
  const WorkerConfig config = small_group_config();
  auto loaded = read_model(config);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  loaded->ops = open_reference_ops(DType::kFloat32);
  ASSERT_TRUE(open_weights(config, *loaded).ok());
  ASSERT_TRUE(load_weights(config, std::make_unique<WaitsInVain>(), *loaded).ok());
  auto runner = make_runner(*loaded);
  ASSERT_TRUE(runner.ok()) << runner.status();
  Scheduler scheduler(loaded->plan.scheduler, loaded->passes);
  const auto spec =
      std::make_shared<const SequenceSpec>(SequenceSpec{.prompt = {5, 17}, .max_new_tokens = 1});
  ASSERT_TRUE(scheduler.submit(SequenceId{1}, spec, absl::Now()).ok());
  StepTimes times;
  const absl::Status status = (*runner)->run(*scheduler.plan(absl::Now()), times).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("waiting for ranks before reading results: no peer"));
}

// Prompts that walk over windows, tokens that penalties count and log-probabilities among them.
std::vector<SequenceSpec> launched_workload() {
  std::vector<SequenceSpec> specs(4);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].prompt = {static_cast<int32_t>(i), 7, 11, 3, 5};
    specs[i].max_new_tokens = 6;
    specs[i].sampling.temperature = 0.0F;
  }
  specs[1].num_logprobs = 2;
  specs[2].sampling.repetition_penalty = 2.0F;
  specs[3].num_prompt_logprobs = 1;
  return specs;
}

// With the device as far behind as can be: whatever the host waits for runs by then.
TEST(ModelRunner, LaunchesAStepWithoutWaitingForTheOneBeforeIt) {
  const DeviceFallsBehind behind;
  const WorkerConfig config = small_group_config();
  LoadedModel loaded = load_on_device(config);
  auto runner = make_runner(loaded);
  ASSERT_TRUE(runner.ok()) << runner.status();
  ASSERT_EQ((*runner)->max_launched(), 2);
  SchedulerOptions options = loaded.plan.scheduler;
  options.max_uncommitted_plans = 2;
  Scheduler scheduler(options, loaded.passes);
  for (const SequenceSpec& spec : launched_workload()) {
    if (spec.sampling.repetition_penalty != 1.0F) continue;
    const SequenceId id{static_cast<uint64_t>(spec.prompt[0]) + 1};
    const auto shared = std::make_shared<const SequenceSpec>(spec);
    ASSERT_TRUE(scheduler.submit(id, shared, absl::Now()).ok());
  }
  StepTimes times;
  const auto launch = [&] {
    const auto plan = scheduler.plan(absl::Now());
    if (!plan.has_value()) return false;
    const uint64_t before = emulated_cuda::num_done();
    EXPECT_TRUE((*runner)->launch(*plan, times).ok());
    EXPECT_EQ(emulated_cuda::num_done(), before) << "step " << plan->step;
    return true;
  };
  int num_ahead = 0;
  for (bool is_under_way = launch(); is_under_way;) {
    is_under_way = launch();
    num_ahead += is_under_way ? 1 : 0;
    const auto result = (*runner)->collect(times);
    ASSERT_TRUE(result.ok()) << result.status();
    scheduler.commit(*result, absl::Now());
    is_under_way = is_under_way || launch();
  }
  EXPECT_GE(num_ahead, 5);
}

TEST(EmulatedEngine, StepsThatAreLaunchedAheadGiveTheReferencesTokens) {
  const auto tokens = [](std::vector<std::unique_ptr<Ops>> ops) {
    std::map<uint64_t, std::vector<int32_t>> found;
    for (auto& [id, generated] :
         generate(small_group_config(), launched_workload(), std::move(ops))) {
      found[id] = std::move(generated.tokens);
      const size_t num_logprobs = id == 2 ? 6 * 3 : id == 4 ? 4 * 2 : 0;
      EXPECT_EQ(generated.logprobs.size(), num_logprobs) << id;
    }
    return found;
  };
  const auto expected = tokens(reference());
  EXPECT_EQ(expected.at(3).size(), 6U);
  EXPECT_EQ(tokens(devices(1)), expected);
  const DeviceFallsBehind behind;
  EXPECT_EQ(tokens(devices(1)), expected) << "as late as can be";
}

// More log-probabilities than a step has room for until its end, beside tokens that penalties
// count.
TEST(EmulatedEngine, LogprobsBeyondAStepsRoomAreThoseOfTheReference) {
  WorkerConfig config = small_group_config();
  config.max_num_batched_tokens = 48;
  config.prefill_lookahead = 48;
  config.max_logprobs = -1;
  SequenceSpec counted{.prompt = {7, 7, 3}, .max_new_tokens = 2};
  counted.sampling = {.temperature = 0.0F, .repetition_penalty = 2.0F};
  counted.num_logprobs = 1;
  SequenceSpec scored{.prompt = std::vector<int32_t>(34, 5), .max_new_tokens = 1};
  scored.sampling.temperature = 0.0F;
  scored.num_prompt_logprobs = 4096;
  for (int32_t i = 0; i < 34; ++i) scored.prompt[i] += i;
  const DeviceFallsBehind behind;
  auto expected = generate(config, {counted, scored}, reference());
  auto found = generate(config, {counted, scored}, devices(1));
  for (const uint64_t id : {1, 2}) {
    EXPECT_EQ(found[id].tokens, expected[id].tokens);
    EXPECT_EQ(found[id].logprobs.size(), id == 1 ? 2U * 2 : 33U * 4097);
    EXPECT_THAT(found[id].logprobs,
                testing::Pointwise(testing::FloatNear(1e-3F), expected[id].logprobs));
  }
}

// In the order of the device's other work: what a block held before it is taken again is copied
// first, whatever the host has gone on to.
TEST(EmulatedEngine, PreemptedSequencesComeBackAsTheyWere) {
  WorkerConfig config = small_group_config();
  config.block_size = 2;
  config.kv_cache_bytes = uint64_t{24} << 10;
  config.swap_bytes = uint64_t{1} << 20;
  std::vector<SequenceSpec> specs(4);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].prompt = {static_cast<int32_t>(i), 9, 30, 2};
    specs[i].max_new_tokens = 8;
    specs[i].sampling.temperature = 0.0F;
  }
  const auto expected = generate(config, specs, reference());
  const auto expect_same = [&](const char* why) {
    SchedulerLoad load;
    EXPECT_EQ(generate(config, specs, devices(1), &load), expected) << why;
    EXPECT_GT(load.num_swapped_out, 0U) << "else nothing is shown";
  };
  expect_same("at once");
  const DeviceFallsBehind behind;
  expect_same("as late as can be");
}

}  // namespace
}  // namespace lckv
