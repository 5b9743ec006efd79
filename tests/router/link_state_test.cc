// Which sessions a link has and when it opens the next, with time as an argument.
#include "router/fleet/link_state.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/fleet/model_info.h"

namespace lckv {
namespace {

using ::testing::AllOf;
using ::testing::Gt;
using ::testing::Lt;
using ::testing::SizeIs;

constexpr absl::Duration kPulse = absl::Milliseconds(10);

class LinkStateTest : public ::testing::Test {
 protected:
  LinkStateTest()
      : link_({.max_session_age = absl::Seconds(60)}, 1),
        model_(std::make_shared<const ModelInfo>()) {}

  // Until a session is to be opened; its number, or 0 after `limit`.
  uint64_t opened_within(absl::Duration limit) {
    for (const absl::Time end = now_ + limit; now_ < end; now_ += kPulse) {
      for (const uint64_t session : live_) frame(session);
      if (const auto turn = link_.tick(now_); turn.opening != 0) return turn.opening;
    }
    return 0;
  }
  void frame(uint64_t session) {
    internal::v1::WorkerFrame frame;
    if (!stands_still_) ++step_;
    frame.mutable_load()->set_step(step_);
    frame.mutable_load()->set_num_layers(8 * step_);
    frame.mutable_load()->set_credit(8);
    link_.on_frame(session, frame, now_);
  }
  void greet(uint64_t session) {
    live_.push_back(session);
    frame(session);
    link_.greet(session, model_, now_);
  }
  LinkState::Ending end(uint64_t session) {
    std::erase(live_, session);
    return link_.on_end(session, now_);
  }
  uint64_t submit() {
    std::vector<LinkState::Outgoing> out;
    EXPECT_TRUE(link_.submit(nullptr, model_.get(), {internal::v1::Submit()}, now_, out));
    return out.front().session;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  LinkState link_;
  const std::shared_ptr<const ModelInfo> model_;
  std::vector<uint64_t> live_;
  uint64_t step_ = 0;
  bool stands_still_ = false;  // frames come, with the step and layers of the last one
};

TEST_F(LinkStateTest, WaitsLongerAfterEveryFailureAndNoLongerThanItsLimit) {
  std::vector<absl::Duration> waits;
  for (int i = 0; i < 8; ++i) {
    const absl::Time failed = now_;
    const uint64_t session = opened_within(absl::Seconds(10));
    ASSERT_NE(session, 0u);
    waits.push_back(now_ - failed);
    end(session);
  }
  EXPECT_EQ(waits[0], absl::ZeroDuration());
  EXPECT_THAT(waits[1], AllOf(Gt(absl::Milliseconds(40)), Lt(absl::Milliseconds(120))));
  EXPECT_THAT(waits[7], AllOf(Gt(absl::Milliseconds(990)), Lt(absl::Milliseconds(2020))));
  greet(opened_within(absl::Seconds(10)));
  end(live_.front());
  const absl::Time lost = now_;
  ASSERT_NE(opened_within(absl::Seconds(10)), 0u);
  EXPECT_LT(now_ - lost, absl::Milliseconds(120));  // a session that stood begins anew
}

TEST_F(LinkStateTest, AnOldSessionIsFollowedAndEndsWithItsLastSequence) {
  const uint64_t first = opened_within(kPulse);
  greet(first);
  EXPECT_EQ(submit(), first);
  EXPECT_EQ(opened_within(absl::Seconds(29)), 0u);
  const uint64_t second = opened_within(absl::Seconds(2));
  ASSERT_NE(second, 0u);
  EXPECT_EQ(submit(), first);  // the second has said nothing yet
  greet(second);
  EXPECT_EQ(submit(), second);
  EXPECT_TRUE(link_.knows(first));
  std::vector<LinkState::Outgoing> out;
  link_.cancel(1, out);
  link_.cancel(2, out);
  EXPECT_EQ(link_.tick(now_).closing, first);
  EXPECT_FALSE(link_.knows(first));
  EXPECT_EQ(link_.current(), second);
}

TEST_F(LinkStateTest, ASessionEndsAtItsLastAgeWithAllThatItHas) {
  const uint64_t first = opened_within(kPulse);
  greet(first);
  submit();
  const uint64_t second = opened_within(absl::Seconds(31));
  ASSERT_NE(second, 0u);
  greet(second);
  now_ += absl::Seconds(29);
  for (const uint64_t session : live_) frame(session);
  EXPECT_EQ(link_.tick(now_).closing, 0u);
  now_ += absl::Seconds(1);
  const LinkState::Turn turn = link_.tick(now_);
  EXPECT_EQ(turn.closing, first);
  EXPECT_FALSE(turn.given_up);
  EXPECT_THAT(turn.orphans, SizeIs(1));
}

TEST_F(LinkStateTest, ASuccessorThatFailsIsTriedAgainAfterAWait) {
  const uint64_t first = opened_within(kPulse);
  greet(first);
  int num_attempts = 0;
  const absl::Time end_time = now_ + absl::Seconds(40);
  while (now_ < end_time && num_attempts < 100) {
    const uint64_t next = opened_within(end_time - now_);
    if (next == 0) break;
    ++num_attempts;
    EXPECT_TRUE(end(next).orphans.empty());
  }
  EXPECT_THAT(num_attempts, AllOf(Gt(5), Lt(20)));
  EXPECT_EQ(link_.current(), first);
  EXPECT_EQ(submit(), first);
}

TEST_F(LinkStateTest, ASilentSessionIsGivenUpWithItsSequences) {
  greet(opened_within(kPulse));
  submit();
  live_.clear();
  now_ += absl::Seconds(2);
  EXPECT_EQ(link_.state(now_, true), ReplicaState::kUnresponsive);
  EXPECT_FALSE(link_.tick(now_).given_up);
  now_ += absl::Seconds(2);
  const LinkState::Turn turn = link_.tick(now_);
  EXPECT_TRUE(turn.given_up);
  EXPECT_THAT(turn.orphans, SizeIs(1));
  EXPECT_EQ(link_.state(now_, true), ReplicaState::kLost);
}

TEST_F(LinkStateTest, ASessionWhoseStepStandsStillIsGivenUpThoughFramesCome) {
  const uint64_t session = opened_within(kPulse);
  greet(session);
  submit();
  stands_still_ = true;
  const absl::Time stood = now_;
  while (now_ - stood < absl::Seconds(30)) {
    now_ += kPulse;
    frame(session);
    ASSERT_FALSE(link_.tick(now_).given_up);
    ASSERT_EQ(link_.state(now_, true), now_ - stood > absl::Seconds(15)
                                           ? ReplicaState::kUnresponsive
                                           : ReplicaState::kReady);
  }
  now_ += kPulse;
  frame(session);
  const LinkState::Turn turn = link_.tick(now_);
  EXPECT_TRUE(turn.given_up);
  EXPECT_EQ(turn.silence, absl::ZeroDuration());
  EXPECT_EQ(turn.closing, session);
  EXPECT_THAT(turn.orphans, SizeIs(1));
  EXPECT_FALSE(link_.knows(session));
}

}  // namespace
}  // namespace lckv
