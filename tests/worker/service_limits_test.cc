// Beats, credit, draining and what ends a session.
#include "tests/worker/service_fixture.h"

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lckv {
namespace {

using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;
using ::testing::ElementsAre;

TEST_F(ServiceTest, IdleSessionsHearABeatWithLoad) {
  start({.beat_interval = absl::Milliseconds(20)});
  serve();
  Router router(*stub_);
  router.next();
  absl::SleepFor(absl::Milliseconds(15));
  StepReport idle = turn();
  idle.load = {.num_running = 3, .num_waiting = 4, .num_free_blocks = 5, .num_blocks = 6};
  service_->report(idle);
  const WorkerFrame beat = router.next();
  EXPECT_EQ(beat.frame_case(), WorkerFrame::FRAME_NOT_SET);
  EXPECT_EQ(beat.load().num_running(), 3U);
  EXPECT_EQ(beat.load().num_waiting(), 4U);
  EXPECT_EQ(beat.load().num_free_blocks(), 5U);
  EXPECT_EQ(beat.load().num_blocks(), 6U);
}

TEST_F(ServiceTest, CreditIsTheQueuesRoomInEqualShares) {
  start({.max_waiting = 10, .beat_interval = absl::ZeroDuration()});
  serve();
  Router first(*stub_);
  EXPECT_EQ(first.next().load().credit(), 10U);
  Router second(*stub_);
  EXPECT_EQ(second.next().load().credit(), 5U);
  StepReport busy = turn();
  busy.load.num_waiting = 6;
  service_->report(busy);
  EXPECT_EQ(first.next().load().credit(), 2U);
  busy.load.num_waiting = 9;  // the last place is offered to both
  service_->report(busy);
  EXPECT_EQ(first.next().load().credit(), 1U);
  busy.load.num_waiting = 10;
  service_->report(busy);
  EXPECT_EQ(first.next().load().credit(), 0U);
}

TEST_F(ServiceTest, WhatIsInTheMailboxIsInFlightAndTakesCredit) {
  start({.max_waiting = 4, .beat_interval = absl::ZeroDuration()});
  serve();
  Router router(*stub_);
  router.next();
  for (const uint64_t handle : {1, 2, 3}) router.submit(handle);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 3; }));
  StepReport behind = turn();
  behind.num_commands = 1;
  behind.last_submit = sequence(0);
  behind.load.num_running = 1;
  service_->report(behind);
  const WorkerFrame frame = router.next();
  EXPECT_EQ(frame.load().num_taken(), 1U);
  EXPECT_EQ(frame.load().credit(), 2U + 2U);  // for two more than the two in flight
  router.cancel(2);
  ASSERT_TRUE(eventually([&] { return service_->num_sequences() == 2; }));
  service_->report(behind);
  EXPECT_EQ(router.next().load().num_taken(), 2U);
}

TEST_F(ServiceTest, ADrainingWorkerSaysSoAndTakesNothingNew) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  service_->drain(absl::InfiniteFuture());
  report();
  const WorkerFrame told = router.next();
  EXPECT_TRUE(told.load().draining());
  EXPECT_EQ(told.load().credit(), 0U);
  router.submit(2);
  EXPECT_EQ(next_but_beats(router).refused().code(),
            static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_EQ(service_->num_sequences(), 1U);
  report({token_of(sequence(0), 10), end_of(sequence(0))});
  EXPECT_THAT(next_but_beats(router).step().token(), ElementsAre(10));
  EXPECT_EQ(service_->num_sequences(), 0U);
}

TEST_F(ServiceTest, ASilentRouterIsTakenForLost) {
  start({.session = {.silence_limit = absl::Milliseconds(200)}});
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  EXPECT_TRUE(eventually([&] {
    report();
    return !mailbox_.cancelled().empty();
  }));
  EXPECT_EQ(router.finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServiceTest, ARouterThatDoesNotReadIsCutOff) {
  start({.session = {.max_queued_frames = 4}});
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  SequenceEvent event = token_of(sequence(0), 10);
  event.logprob = TokenLogprob{.top_ids = std::vector<int32_t>(50'000, 1),
                               .top_logprobs = std::vector<float>(50'000, -1)};
  EXPECT_TRUE(eventually([&] {
    report({event});
    return !mailbox_.cancelled().empty();
  }));
  EXPECT_EQ(service_->num_sequences(), 0U);
  EXPECT_FALSE(router.finish().ok());
}

TEST_F(ServiceTest, ProtocolErrorsEndTheSession) {
  start();
  serve();
  Router unopened(*stub_, false);
  unopened.submit(1);
  EXPECT_EQ(unopened.finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  Router reopened(*stub_);
  RouterFrame open;
  open.mutable_open();
  reopened.write(open);
  EXPECT_EQ(reopened.finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  Router repeated(*stub_);
  repeated.submit(1);
  repeated.submit(1);
  EXPECT_EQ(repeated.finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(mailbox_.cancelled(), ElementsAre(raw(sequence(0))));
  EXPECT_THAT(mailbox_.submits(), ::testing::SizeIs(1));
}

TEST_F(ServiceTest, NoMoreSessionsThanAllowed) {
  start({.max_sessions = 1});
  serve();
  Router first(*stub_);
  first.next();
  Router second(*stub_);
  EXPECT_EQ(second.finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, StepAgeCountsOnlyWorkThatCouldGoOn) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  report();
  EXPECT_EQ(service_->step_age(absl::Now()), absl::ZeroDuration());
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  report({token_of(sequence(0), 1)});
  report();  // the loop turns, but no step runs
  EXPECT_GE(service_->step_age(absl::Now() + absl::Minutes(2)), absl::Minutes(2));
  router.pause(1, true);
  ASSERT_TRUE(eventually([&] { return mailbox_.paused().size() == 1; }));
  report();
  EXPECT_EQ(service_->step_age(absl::Now()), absl::ZeroDuration());
  EXPECT_GE(service_->step_age(absl::Now() + absl::Minutes(2)), absl::Minutes(1));
}

// Routers that come and go while the loop turns: afterwards nothing is left, whatever met whatever.
TEST_F(ServiceTest, ManySessionsAtOnceLeaveNothingBehind) {
  start();
  serve();
  std::atomic<bool> done = false;
  std::thread engine([&] {
    size_t seen = 0;
    while (!done) {
      std::vector<SequenceEvent> events;
      const std::vector<SubmitCommand> submits = mailbox_.submits();
      for (; seen < submits.size(); ++seen) {
        events.push_back(token_of(submits[seen].sequence, 1));
        if (seen % 3 == 0) events.push_back(end_of(submits[seen].sequence));
      }
      report(std::move(events));
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::vector<std::thread> routers;
  for (int i = 0; i < 4; ++i) {
    routers.emplace_back([this, i, seed] {
      std::mt19937 random(seed + i);
      for (int life = 0; life < 5; ++life) {
        Router router(*stub_);
        router.next();
        for (uint64_t handle = 1; handle <= 20; ++handle) {
          router.submit(handle);
          if (random() % 2 == 0) router.cancel(random() % handle + 1);
          if (random() % 4 == 0) router.pause(random() % handle + 1, random() % 2 == 0);
        }
        router.end();
      }
    });
  }
  for (std::thread& router : routers) router.join();
  EXPECT_TRUE(eventually([&] { return service_->num_sequences() == 0; }));
  done = true;
  engine.join();
}

}  // namespace
}  // namespace lckv
