// What a session holds, with time as an argument.
#include "router/fleet/session_state.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;

class SessionStateTest : public ::testing::Test {
 protected:
  void frame(uint64_t step, absl::Duration step_time = absl::Milliseconds(10)) {
    internal::v1::WorkerFrame frame;
    frame.mutable_load()->set_step(step);
    frame.mutable_load()->set_step_microseconds(
        static_cast<uint64_t>(absl::ToInt64Microseconds(step_time)));
    frame.mutable_load()->set_credit(2);
    frame.mutable_load()->set_num_taken(num_taken_);
    frame.mutable_load()->set_num_layers(num_layers_);
    state_.on_frame(frame, now_);
  }
  bool submit(size_t count = 1) {
    std::vector<internal::v1::Submit> submits(count);
    const bool taken = state_.submit(nullptr, next_handle_, submits, now_);
    if (taken) next_handle_ += count;
    return taken;
  }
  void ready() {
    frame(1);
    state_.greet(now_);
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  SessionState state_{now_};
  uint64_t next_handle_ = 1;
  uint64_t num_taken_ = 0;
  uint64_t num_layers_ = 0;
};

TEST_F(SessionStateTest, NothingIsSubmittedBeforeHelloOrBeyondCredit) {
  frame(1);
  EXPECT_FALSE(submit());
  state_.greet(now_);
  EXPECT_FALSE(submit(3));
  EXPECT_TRUE(submit());
  EXPECT_TRUE(submit());
  EXPECT_FALSE(submit());  // both are in flight
  num_taken_ = 1;
  frame(2);
  EXPECT_EQ(state_.num_in_flight(), 1u);
  EXPECT_TRUE(submit());
  EXPECT_FALSE(submit());
}

TEST_F(SessionStateTest, OnlyWorkThatCouldRunMakesAStandstill) {
  ready();
  now_ += absl::Seconds(10);
  EXPECT_EQ(state_.standstill(now_), absl::ZeroDuration());
  submit();
  now_ += absl::Seconds(3);
  frame(1);  // beats, but no step
  EXPECT_EQ(state_.standstill(now_), absl::Seconds(3));
  EXPECT_EQ(state_.silence(now_), absl::ZeroDuration());
  frame(2);
  EXPECT_EQ(state_.standstill(now_), absl::ZeroDuration());
  state_.set_paused(1, true, now_);
  now_ += absl::Seconds(9);
  EXPECT_EQ(state_.standstill(now_), absl::ZeroDuration());
  state_.set_paused(1, false, now_);
  now_ += absl::Seconds(1);
  EXPECT_EQ(state_.standstill(now_), absl::Seconds(1));
  EXPECT_EQ(state_.silence(now_), absl::Seconds(10));
}

TEST_F(SessionStateTest, AStepThatRunsLayersDoesNotStandStill) {
  ready();
  submit();
  now_ += absl::Seconds(20);
  ++num_layers_;
  frame(1);
  EXPECT_EQ(state_.standstill(now_), absl::ZeroDuration());
}

TEST_F(SessionStateTest, ALongGapIsRememberedForAWhileOnly) {
  ready();
  now_ += absl::Seconds(5);
  frame(2);
  frame(3);
  EXPECT_GT(state_.long_gap(), absl::Seconds(4));
  for (uint64_t step = 4; step < 400; ++step) frame(step);
  EXPECT_LT(state_.long_gap(), absl::Milliseconds(20));
}

// Steps may be long: frames come between their layers.
TEST_F(SessionStateTest, ALongStepIsNoGap) {
  ready();
  frame(2, absl::Seconds(50));
  frame(3, absl::Seconds(50));
  EXPECT_LT(state_.long_gap(), absl::Seconds(1));
}

TEST_F(SessionStateTest, WhatIsLeftComesBackOldestFirstAndIsGone) {
  ready();
  submit(2);
  EXPECT_TRUE(state_.take(1).has_value());
  EXPECT_FALSE(state_.take(1).has_value());
  num_taken_ = 2;
  frame(2);
  submit(2);
  std::vector<uint64_t> handles;
  for (const auto& [handle, route] : state_.take_all()) handles.push_back(handle);
  EXPECT_THAT(handles, ElementsAre(2, 3, 4));
  EXPECT_TRUE(state_.empty());
}

}  // namespace
}  // namespace lckv
