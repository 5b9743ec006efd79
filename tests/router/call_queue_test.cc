// Who is placed first, who waits, who is told to come back: the queue over a set that the test
// writes, with time as an argument.
#include "router/call_queue.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/retry_budget.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class CallQueueTest : public ::testing::Test {
 protected:
  struct Call final : WaitingCall {
    Call(CallQueueTest& owner, std::string own_name) : test(owner), name(std::move(own_name)) {}
    Assignment assign(const ReplicaView& replica, const std::vector<uint32_t>& choices) override {
      if (test.during_offer_) test.during_offer_(this);
      const auto answer = std::exchange(test.next_answer_, Assignment::kTaken);
      if (answer != Assignment::kTaken) return answer;
      test.placed_.push_back(name + "@" + replica.address);
      test.credit_ -= static_cast<uint32_t>(choices.size());
      given.insert(given.end(), choices.begin(), choices.end());
      return Assignment::kTaken;
    }
    void expire(const absl::Status& why) override { expired = why; }
    CallQueueTest& test;
    const std::string name;
    absl::Status expired;
    std::vector<uint32_t> given;  // choices
  };

  CallQueueTest() {
    internal::v1::Hello hello = demo_hello();
    hello.clear_tokenizer();
    model_ = serving_ = *make_model_info(hello, nullptr);
    policy_ = make_routing_policy(policy_names().front());
  }

  std::shared_ptr<const ReplicaSet> set() {
    auto set = std::make_shared<ReplicaSet>();
    ReplicaView& view = set->replicas.emplace_back();
    view.address = "a";
    view.state = ready_ ? ReplicaState::kReady : ReplicaState::kLost;
    view.model = serving_;
    view.load.set_credit(credit_);
    view.load.set_seats_per_second(1);
    view.load.set_seat_seconds(1);
    return set;
  }

  CallQueue& queue() {
    if (queue_ == nullptr) {
      queue_ = std::make_unique<CallQueue>(
          options_, ReplicaSource{.snapshot = [this] { return set(); }, .refresh = [] {}}, *policy_,
          [this](const std::string&, int change) { depth_ += change; });
    }
    return *queue_;
  }

  // A new call that is to end within `time`.
  absl::Status add_due(absl::Duration time, int32_t priority = 0,
                       const std::string& fingerprint = "") {
    auto call = std::make_shared<Call>(*this, "due");
    queue().add({.call = call,
                 .key = {.model = model_, .fingerprint = fingerprint},
                 .choices = {0},
                 .priority = priority,
                 .arrival = now_,
                 .since = now_,
                 .deadline = now_ + time});
    return call->expired;
  }

  std::shared_ptr<Call> add(const std::string& name, CallQueue::Kind kind, int32_t priority = 0,
                            absl::Duration delay = absl::ZeroDuration()) {
    auto call = std::make_shared<Call>(*this, name);
    queue().add({.call = call,
                 .key = {.model = model_},
                 .choices = {0},
                 .kind = kind,
                 .priority = priority,
                 .arrival = now_,
                 .since = now_,
                 .not_before = now_ + delay});
    return call;
  }

  CallQueueOptions options_;
  std::shared_ptr<const ModelInfo> model_;    // of what is added
  std::shared_ptr<const ModelInfo> serving_;  // the replica's
  std::function<void(WaitingCall*)> during_offer_;
  std::unique_ptr<const RoutingPolicy> policy_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  bool ready_ = true;
  uint32_t credit_ = 0;
  WaitingCall::Assignment next_answer_ = WaitingCall::Assignment::kTaken;
  int depth_ = 0;
  std::vector<std::string> placed_;
  std::unique_ptr<CallQueue> queue_;
};

TEST_F(CallQueueTest, StreamsThatGoOnComeBeforeAnyNewCallPacedByCredit) {
  add("new", CallQueue::Kind::kNew);
  add("urgent", CallQueue::Kind::kNew, 5);
  add("retry", CallQueue::Kind::kRetry);
  add("resume", CallQueue::Kind::kResume, -5);
  EXPECT_THAT(placed_, IsEmpty());
  credit_ = 1;
  queue().dispatch();
  EXPECT_THAT(placed_, ElementsAre("resume@a"));
  credit_ = 3;
  queue().dispatch();
  EXPECT_THAT(placed_, ElementsAre("resume@a", "urgent@a", "new@a", "retry@a"));
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, WhatCannotEndBeforeItsDeadlineIsRefusedWithATimeToComeBack) {
  // One seat a second, kept for a second; 80 % of the time may be used up.
  for (int i = 0; i < 5; ++i) add("waiting", CallQueue::Kind::kNew);
  const absl::Status refused = add_due(absl::Seconds(6));
  EXPECT_TRUE(absl::IsDeadlineExceeded(refused)) << refused;
  EXPECT_TRUE(refused.GetPayload("type.googleapis.com/google.rpc.RetryInfo").has_value());
  EXPECT_EQ(depth_, 5);
  EXPECT_TRUE(add_due(absl::Seconds(8)).ok());
  EXPECT_EQ(depth_, 6);
}

// No replica may ever have room for all of them at once, and others wait behind.
TEST_F(CallQueueTest, ACallOfManyChoicesIsPlacedPartByPart) {
  auto call = std::make_shared<Call>(*this, "many");
  queue().add({.call = call,
               .key = {.model = model_, .num_sequences = 5},
               .choices = {0, 1, 2, 3, 4},
               .arrival = now_,
               .since = now_});
  add("behind", CallQueue::Kind::kNew);
  credit_ = 2;
  queue().dispatch();
  EXPECT_THAT(call->given, ElementsAre(0, 1));
  credit_ = 2;
  queue().dispatch();
  EXPECT_THAT(call->given, ElementsAre(0, 1, 2, 3));
  credit_ = 2;
  queue().dispatch();
  EXPECT_THAT(call->given, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(placed_, ElementsAre("many@a", "many@a", "many@a", "behind@a"));
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, WhatOneReplicaWillNotDoForIsNotTheWholeCall) {
  auto call = std::make_shared<Call>(*this, "many");
  credit_ = 2;
  next_answer_ = WaitingCall::Assignment::kMoved;
  queue().add({.call = call,
               .key = {.model = model_, .num_sequences = 4},
               .choices = {0, 1, 2, 3},
               .arrival = now_,
               .since = now_});
  EXPECT_THAT(call->given, ElementsAre(2, 3));
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, OfACallThatHasEndedNothingIsLeft) {
  credit_ = 2;
  next_answer_ = WaitingCall::Assignment::kGone;
  queue().add({.call = std::make_shared<Call>(*this, "many"),
               .key = {.model = model_, .num_sequences = 5},
               .choices = {0, 1, 2, 3, 4},
               .arrival = now_,
               .since = now_});
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, OnlyThoseBeforeItStandInACallsWay) {
  for (int i = 0; i < 5; ++i) add("waiting", CallQueue::Kind::kNew);
  EXPECT_TRUE(add_due(absl::Seconds(2), /*priority=*/1).ok());
  // In a row of its own: other needs.
  EXPECT_TRUE(add_due(absl::Seconds(2), 0, model_->hello.fingerprint()).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(add_due(absl::Seconds(2))));
}

TEST_F(CallQueueTest, ARetryKeepsItsArrival) {
  add("later", CallQueue::Kind::kNew);
  now_ -= absl::Seconds(5);
  add("retry", CallQueue::Kind::kRetry);
  credit_ = 2;
  queue().dispatch();
  EXPECT_THAT(placed_, ElementsAre("retry@a", "later@a"));
}

TEST_F(CallQueueTest, WhatIsDelayedWaitsForItsTimeAndHoldsNobodyUp) {
  credit_ = 5;
  add("delayed", CallQueue::Kind::kRetry, 0, absl::Milliseconds(100));
  add("new", CallQueue::Kind::kNew);
  EXPECT_THAT(placed_, ElementsAre("new@a"));
  queue().tick(now_ + absl::Milliseconds(99));
  EXPECT_EQ(depth_, 1);
  queue().tick(now_ + absl::Milliseconds(100));
  EXPECT_THAT(placed_, ElementsAre("new@a", "delayed@a"));
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, WithNoReplicaNewCallsEndAtOnceAndStreamsWaitTheirTimeout) {
  ready_ = false;
  options_.resume_timeout = absl::Seconds(7);
  EXPECT_TRUE(absl::IsUnavailable(add("new", CallQueue::Kind::kNew)->expired));
  const auto resume = add("resume", CallQueue::Kind::kResume);
  queue().tick(now_ + absl::Seconds(7));
  EXPECT_TRUE(resume->expired.ok());
  queue().tick(now_ + absl::Seconds(7) + absl::Milliseconds(1));
  EXPECT_TRUE(absl::IsUnavailable(resume->expired));
  EXPECT_EQ(depth_, 0);
}

TEST_F(CallQueueTest, AFullQueueRefusesNewCallsOnly) {
  options_.max_calls = 1;
  const auto first = add("first", CallQueue::Kind::kNew);
  EXPECT_TRUE(absl::IsResourceExhausted(add("second", CallQueue::Kind::kNew)->expired));
  const auto resume = add("resume", CallQueue::Kind::kResume);
  EXPECT_TRUE(first->expired.ok() && resume->expired.ok());
  EXPECT_EQ(depth_, 2);
}

TEST_F(CallQueueTest, WhoWaitsForAKindOfReplicaThatIsGoneHoldsNobodyUp) {
  const std::shared_ptr<const ModelInfo> present = model_;
  internal::v1::Hello hello = demo_hello();
  hello.clear_tokenizer();
  hello.set_max_context_tokens(2 * hello.max_context_tokens());
  const std::shared_ptr<const ModelInfo> gone = *make_model_info(hello, nullptr);
  serving_ = present;
  model_ = gone;
  add("retry", CallQueue::Kind::kRetry);
  model_ = present;
  credit_ = 1;
  add("new", CallQueue::Kind::kNew);
  EXPECT_THAT(placed_, ElementsAre("new@a"));
}

TEST_F(CallQueueTest, ACallThatIsRemovedWhileItIsOfferedDoesNotComeBack) {
  credit_ = 1;
  during_offer_ = [this](WaitingCall* call) { queue().remove(call); };
  next_answer_ = WaitingCall::Assignment::kNotTaken;
  add("ended", CallQueue::Kind::kNew);
  EXPECT_EQ(depth_, 0);
  queue().dispatch();
  EXPECT_THAT(placed_, IsEmpty());
}

TEST_F(CallQueueTest, AnEndedCallLeavesWithAllItsEntries) {
  const auto call = add("call", CallQueue::Kind::kNew);
  for (const auto kind : {CallQueue::Kind::kResume, CallQueue::Kind::kRetry}) {
    queue().add({.call = call,
                 .key = {.model = model_},
                 .choices = {1},
                 .kind = kind,
                 .arrival = now_,
                 .since = now_,
                 .not_before = kind == CallQueue::Kind::kRetry ? now_ + absl::Seconds(1) : now_});
  }
  EXPECT_EQ(depth_, 3);
  queue().remove(call.get());
  EXPECT_EQ(depth_, 0);
  credit_ = 9;
  queue().tick(now_ + absl::Seconds(2));
  EXPECT_THAT(placed_, IsEmpty());
}

TEST(RetryBudgetTest, EachRetryCostsOneAndFiveCallsEarnOne) {
  RetryBudget budget({.capacity = 2});
  EXPECT_TRUE(budget.spend("m") && budget.spend("m"));
  EXPECT_FALSE(budget.spend("m"));
  EXPECT_TRUE(budget.spend("other"));
  for (int i = 0; i < 4; ++i) budget.earn("m");
  EXPECT_FALSE(budget.spend("m"));
  for (int i = 0; i < 2; ++i) budget.earn("m");
  EXPECT_TRUE(budget.spend("m"));
  EXPECT_FALSE(budget.spend("m"));
  for (int i = 0; i < 100; ++i) budget.earn("m");
  EXPECT_TRUE(budget.spend("m") && budget.spend("m"));
  EXPECT_FALSE(budget.spend("m"));
}

TEST(RetryBudgetTest, BackOffDoublesToTwoSecondsAndIsSpreadOverHalf) {
  EXPECT_EQ(retry_backoff(0, 0), absl::Milliseconds(100));
  EXPECT_EQ(retry_backoff(0, 1), absl::Milliseconds(50));
  EXPECT_EQ(retry_backoff(2, 0), absl::Milliseconds(400));
  EXPECT_EQ(retry_backoff(5, 0), absl::Seconds(2));
  EXPECT_EQ(retry_backoff(1000, 0.5), absl::Milliseconds(1500));
}

}  // namespace
}  // namespace lckv
