#include "worker/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

#include "tests/support/local_replica.h"
#include "tests/support/rank_threads.h"

namespace lckv {
namespace {

// Far longer than anything here takes: only a defect waits this long.
constexpr auto kDeadline = std::chrono::seconds(60);

// Of a runner that has two steps launched: how many, in the order of its calls.
struct Ahead {
  std::vector<int> num_launched;
};

class RunsAhead final : public StepRunner {
 public:
  RunsAhead(std::unique_ptr<StepRunner> runner, Ahead& ahead)
      : runner_(std::move(runner)), ahead_(ahead) {}
  void set_before_layer(std::function<void()> hook) override { runner_->set_before_layer(hook); }
  int max_launched() const override { return 2; }
  absl::Status launch(const StepPlan& plan, StepTimes& times) override {
    results_.push_back(runner_->run(plan, times));
    ahead_.num_launched.push_back(static_cast<int>(results_.size()));
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> collect(StepTimes&) override {
    auto result = std::move(results_.front());
    results_.pop_front();
    ahead_.num_launched.push_back(static_cast<int>(results_.size()));
    return result;
  }

 private:
  const std::unique_ptr<StepRunner> runner_;
  Ahead& ahead_;
  std::deque<absl::StatusOr<StepResult>> results_;
};

class EngineTest : public testing::Test {
 protected:
  void open(EngineOptions options, std::unique_ptr<Collectives> ranks = nullptr,
            Ahead* ahead = nullptr) {
    const LocalOptions local{.model = "tests/golden/cases/lckv-w2-nodiag"};
    LocalRunner runner = open_local_runner(local, std::move(ranks)).value();
    SchedulerOptions scheduler{.max_num_seqs = local.max_num_seqs,
                               .max_waiting = 2,
                               .max_batched_rows = local.max_batched_rows,
                               .max_context = local.max_context,
                               .num_blocks = local.num_blocks,
                               .slots_per_block = runner.geometry.slots_per_block,
                               .staging_rows = local.staging_rows,
                               .prefill_lookahead = 16,
                               .reproducible = true,
                               .max_uncommitted_plans = ahead == nullptr ? 1 : 2};
    std::unique_ptr<StepRunner> steps = std::move(runner.runner);
    if (ahead != nullptr) steps = std::make_unique<RunsAhead>(std::move(steps), *ahead);
    engine_ = std::make_unique<Engine>(
        std::move(options), std::make_unique<Scheduler>(std::move(scheduler), runner.passes),
        std::move(steps), [this](const StepReport& report) { take(report); });
  }
  void take(const StepReport& report) {
    const std::lock_guard lock(mutex_);
    if (!report.ran_step && report.num_layers > last_.num_layers) ++num_within_steps_;
    last_ = report;
    ++num_reports_;
    for (const SequenceEvent& event : report.events) {
      if (event.kind == SequenceEvent::Kind::kToken) {
        tokens_[raw(event.sequence)].push_back(event.token);
      }
      if (event.kind == SequenceEvent::Kind::kFinished) ++num_finished_;
    }
    for (const Refusal& refusal : report.refusals) refusals_.push_back(refusal.status);
    changed_.notify_all();
  }
  [[nodiscard]] bool wait_for(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kDeadline, condition);
  }
  absl::Status submit(uint64_t id, int32_t max_new_tokens) {
    auto spec = std::make_shared<SequenceSpec>();
    spec->prompt = random_tokens(id, 20, 97);
    spec->sampling.temperature = 0.0F;
    spec->max_new_tokens = max_new_tokens;
    return engine_->post(SubmitCommand{SequenceId{id}, std::move(spec)});
  }

  std::mutex mutex_;  // guards what follows, up to the engine
  std::condition_variable changed_;
  StepReport last_;
  int num_reports_ = 0;
  int num_within_steps_ = 0;
  int num_finished_ = 0;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::vector<absl::Status> refusals_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, RunsWhatIsSubmittedToItsEnd) {
  open({});
  engine_->start();
  ASSERT_TRUE(submit(1, 5).ok());
  ASSERT_TRUE(submit(2, 9).ok());
  ASSERT_TRUE(wait_for([this] { return num_finished_ == 2; }));
  // The next turn frees what they held.
  ASSERT_TRUE(wait_for([this] {
    return last_.load.num_running == 0 && last_.load.num_free_blocks == last_.load.num_blocks;
  }));
  engine_->stop();  // what follows is read without its thread
  EXPECT_EQ(tokens_[1].size(), 5U);
  EXPECT_EQ(tokens_[2].size(), 9U);
  EXPECT_EQ(last_.num_commands, 2U);
  EXPECT_EQ(last_.last_submit, SequenceId{2});
}

TEST_F(EngineTest, BeatsWhenIdle) {
  open({.beat_interval = absl::Milliseconds(5)});
  engine_->start();
  EXPECT_TRUE(wait_for([this] { return num_reports_ >= 5; }));
  const std::lock_guard lock(mutex_);
  EXPECT_FALSE(last_.ran_step);
  EXPECT_EQ(last_.step, 0U);
}

TEST_F(EngineTest, BeatsBetweenTheLayersOfAStep) {
  open({.beat_interval = absl::ZeroDuration()});
  engine_->start();
  ASSERT_TRUE(submit(1, 5).ok());
  ASSERT_TRUE(wait_for([this] { return num_finished_ == 1; }));
  engine_->stop();
  EXPECT_GE(num_within_steps_, 5);
}

TEST_F(EngineTest, RefusesWhatDoesNotFit) {
  open({});
  engine_->start();
  ASSERT_TRUE(submit(1, 100000).ok());
  ASSERT_TRUE(wait_for([this] { return refusals_.size() == 1; }));
  engine_->stop();
  EXPECT_EQ(refusals_[0].code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, TheMailboxIsBounded) {
  open({.max_mailbox = 2});
  EXPECT_TRUE(submit(1, 1).ok());
  EXPECT_TRUE(submit(2, 1).ok());
  EXPECT_EQ(submit(3, 1).code(), absl::StatusCode::kResourceExhausted);
  engine_->start();
  EXPECT_TRUE(wait_for([this] { return num_finished_ == 2; }));
}

TEST_F(EngineTest, APausedSequenceWaitsAndGoesOn) {
  open({});
  ASSERT_TRUE(submit(1, 400).ok());
  ASSERT_TRUE(submit(2, 3).ok());
  ASSERT_TRUE(engine_->post(PauseCommand{SequenceId{1}}).ok());
  engine_->start();
  ASSERT_TRUE(wait_for([this] { return num_finished_ == 1; }));
  {
    const std::lock_guard lock(mutex_);
    EXPECT_EQ(tokens_[2].size(), 3U);
    EXPECT_TRUE(tokens_[1].empty());
  }
  ASSERT_TRUE(engine_->post(UnpauseCommand{SequenceId{1}}).ok());
  ASSERT_TRUE(wait_for([this] { return num_finished_ == 2; }));
  engine_->stop();
  EXPECT_EQ(tokens_[1].size(), 400U);
}

TEST_F(EngineTest, CancelFreesAndIsSilent) {
  open({});
  engine_->start();
  ASSERT_TRUE(submit(1, 450).ok());
  ASSERT_TRUE(wait_for([this] { return !tokens_[1].empty(); }));
  ASSERT_TRUE(engine_->post(CancelCommand{SequenceId{1}}).ok());
  ASSERT_TRUE(wait_for([this] {
    return last_.num_commands == 2 && last_.load.num_running == 0 &&
           last_.load.num_free_blocks == last_.load.num_blocks;
  }));
  engine_->stop();
  EXPECT_EQ(num_finished_, 0);
  EXPECT_LT(tokens_[1].size(), 450U);
}

TEST_F(EngineTest, EndsAndSaysWhyWhereAPeerIsGone) {
  auto ranks = connect_threads(2);
  std::vector<absl::Status> failures;
  const auto failed = [&](const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    failures.push_back(status);
    changed_.notify_all();
  };
  open({.beat_interval = absl::Milliseconds(1), .failed = failed}, std::move(ranks[0]));
  ranks[1].reset();
  engine_->start();
  ASSERT_TRUE(submit(1, 5).ok());
  ASSERT_TRUE(wait_for([&] { return !failures.empty(); }));
  const int num_reports = num_reports_;
  engine_->stop();
  ASSERT_EQ(failures.size(), 1U);
  EXPECT_TRUE(absl::IsUnavailable(failures[0]));
  EXPECT_THAT(std::string(failures[0].message()),
              testing::StartsWith("rank 0, step 1, all_reduce of embeddings: rank 1 is gone"));
  EXPECT_EQ(num_reports_, num_reports);
}

TEST_F(EngineTest, TellsEachPlanBeforeItsResultAndWhatItIsDoing) {
  RankProgress progress;
  std::vector<uint64_t> told;  // steps: planned ones, and results as they came
  open({.beat_interval = absl::Milliseconds(1),
        .progress = &progress,
        .on_plan =
            [&](const StepPlan& plan) {
              EXPECT_EQ(progress.look().operation, Operation::kPlan);
              told.push_back(plan.step);
            },
        .on_result = [&](const StepResult& result) { told.push_back(result.step); }});
  EXPECT_EQ(progress.look().num_turns, 0U);
  engine_->start();
  ASSERT_TRUE(submit(1, 5).ok());
  ASSERT_TRUE(wait_for([this] { return num_finished_ == 1; }));
  const uint64_t turns = progress.look().num_turns;
  ASSERT_TRUE(wait_for([&] { return progress.look().num_turns > turns + 5; }));  // idle ones too
  engine_->stop();
  ASSERT_GE(told.size(), 10U);
  for (size_t i = 0; i < told.size(); ++i) EXPECT_EQ(told[i], i / 2 + 1);
}

TEST_F(EngineTest, LaunchesAStepBeforeTheOneBeforeItIsCommitted) {
  const auto run = [this](EngineOptions options, Ahead* ahead) {
    num_finished_ = 0;
    tokens_.clear();
    open(std::move(options), nullptr, ahead);
    ASSERT_TRUE(submit(1, 12).ok());
    ASSERT_TRUE(submit(2, 5).ok());
    engine_->start();
    ASSERT_TRUE(wait_for([this] { return num_finished_ == 2; }));
    engine_->stop();
  };
  run({}, nullptr);
  const auto expected = tokens_;
  EXPECT_EQ(expected.at(1).size(), 12U);
  Ahead ahead;
  bool is_prompt_held_for = false;
  uint64_t num_committed = 0;
  run({.on_hold =
           [&] {
             const std::lock_guard lock(mutex_);
             is_prompt_held_for = is_prompt_held_for || tokens_.empty();
           },
       .on_result = [&](const StepResult& result) { num_committed = result.step; }},
      &ahead);
  EXPECT_EQ(tokens_, expected);
  // Tokens that are not known yet are decoded from all the same: most steps find one launched.
  EXPECT_GE(std::ranges::count(ahead.num_launched, 2), 8);
  EXPECT_EQ(ahead.num_launched.back(), 0) << "nothing stays launched";
  EXPECT_EQ(2 * num_committed, ahead.num_launched.size());
  EXPECT_TRUE(is_prompt_held_for) << "a walk is waited for";
}

TEST_F(EngineTest, WhatIsLaunchedIsCollectedWhereItStops) {
  Ahead ahead;
  open({}, nullptr, &ahead);
  engine_->start();
  ASSERT_TRUE(submit(1, 450).ok());
  ASSERT_TRUE(wait_for([this] { return !tokens_[1].empty(); }));
  engine_->stop();
  EXPECT_EQ(ahead.num_launched.back(), 0);
  EXPECT_EQ(num_finished_, 0);
}

TEST_F(EngineTest, StopEndsInTheMiddleOfWork) {
  open({});
  engine_->start();
  ASSERT_TRUE(submit(1, 450).ok());
  ASSERT_TRUE(wait_for([this] { return !tokens_[1].empty(); }));
  engine_->stop();
  const int num_reports = num_reports_;
  engine_.reset();
  EXPECT_EQ(num_reports_, num_reports);
  EXPECT_EQ(num_finished_, 0);
}

}  // namespace
}  // namespace lckv
