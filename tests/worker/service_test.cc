// Sessions and sequences: who gets what.
#include "tests/worker/service_fixture.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lckv {
namespace {

using internal::v1::WorkerFrame;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(ServiceTest, SessionsOpenedBeforeAndAfterLoadingAreGreeted) {
  start();
  Router early(*stub_);
  absl::SleepFor(absl::Milliseconds(20));
  serve();
  Router late(*stub_);
  for (Router* router : {&early, &late}) {
    const WorkerFrame frame = router->next();
    EXPECT_EQ(frame.hello().model(), "m");
    EXPECT_TRUE(frame.has_load());
    EXPECT_GT(frame.load().credit(), 0U);
  }
}

TEST_F(ServiceTest, EachSessionGetsItsOwnSequencesInOneFrameAStep) {
  start();
  serve();
  Router first(*stub_);
  Router second(*stub_);
  first.next();
  second.next();
  first.submit(70);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  second.submit(70);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 2; }));
  first.submit(71);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 3; }));
  EXPECT_EQ(service_->num_sequences(), 3U);

  report({token_of(sequence(0), 10), token_of(sequence(1), 20), token_of(sequence(2), 30),
          end_of(sequence(0))});
  const WorkerFrame of_first = next_but_beats(first);
  EXPECT_THAT(of_first.step().handle(), ElementsAre(70, 71));
  EXPECT_THAT(of_first.step().token(), ElementsAre(10, 30));
  ASSERT_EQ(of_first.step().finished_size(), 1);
  EXPECT_EQ(of_first.step().finished(0).handle(), 70U);
  EXPECT_EQ(of_first.step().step(), 1U);
  EXPECT_EQ(of_first.load().step(), 1U);
  EXPECT_EQ(of_first.load().num_taken(), 2U);
  EXPECT_EQ(of_first.load().num_routers(), 2U);
  const WorkerFrame of_second = next_but_beats(second);
  EXPECT_THAT(of_second.step().token(), ElementsAre(20));
  EXPECT_EQ(service_->num_sequences(), 2U);
}

// A router opens a session before it ends the last one.
TEST_F(ServiceTest, TwoSessionsOfOneRouterShareWhatOneWouldHave) {
  start();
  serve();
  Router first(*stub_, true, "a");
  const uint32_t alone = first.next().load().credit();
  Router second(*stub_, true, "a");
  const WorkerFrame of_second = second.next();
  EXPECT_EQ(of_second.load().num_routers(), 1U);
  EXPECT_EQ(of_second.load().credit(), alone);
  Router other(*stub_, true, "b");
  const WorkerFrame of_other = other.next();
  EXPECT_EQ(of_other.load().num_routers(), 2U);
  EXPECT_EQ(of_other.load().credit(), alone / 2);
  first.end();
  second.end();
  EXPECT_TRUE(eventually([&] {
    Router last(*stub_, true, "c");
    return last.next().load().num_routers() == 2;
  }));
}

TEST_F(ServiceTest, BadSubmitsAreRefusedAndTheSessionGoesOn) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1, 100);
  const WorkerFrame frame = next_but_beats(router);
  EXPECT_EQ(frame.refused().handle(), 1U);
  EXPECT_EQ(frame.refused().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(frame.refused().field(), "prompt");
  EXPECT_THAT(frame.refused().message(), HasSubstr("100"));
  EXPECT_EQ(frame.load().num_taken(), 1U);
  router.submit(2);
  EXPECT_TRUE(eventually([&] { return mailbox_.submits().size() == 1; }));
}

// A retry that delivered nothing waits as any other call.
TEST_F(ServiceTest, OnlyWhatHasTokensAlreadyContinues) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  for (const bool resumed : {false, true}) {
    internal::v1::RouterFrame frame;
    internal::v1::Submit& submit = *frame.mutable_submit();
    submit.set_handle(resumed ? 2 : 1);
    submit.add_prompt(5);
    if (resumed) submit.add_resumed(6);
    submit.set_attempt(2);
    submit.mutable_sampling()->set_top_p(1);
    submit.mutable_sampling()->set_repetition_penalty(1);
    router.write(frame);
  }
  ASSERT_TRUE(eventually([&] { return mailbox_.submits().size() == 2; }));
  EXPECT_FALSE(mailbox_.submits()[0].spec->continued);
  EXPECT_TRUE(mailbox_.submits()[1].spec->continued);
}

TEST_F(ServiceTest, WhatTheSchedulerRefusesIsTold) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  router.submit(2);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 2; }));
  StepReport refusing = turn();
  refusing.refusals = {{sequence(0), absl::ResourceExhaustedError("the queue is full")},
                       {sequence(1), absl::InvalidArgumentError("needs 9 blocks of 4")}};
  service_->report(refusing);
  const WorkerFrame full = next_but_beats(router);
  EXPECT_EQ(full.refused().handle(), 1U);
  EXPECT_GT(full.refused().retry_seconds(), 0);
  const WorkerFrame too_long = next_but_beats(router);
  EXPECT_EQ(too_long.refused().handle(), 2U);
  EXPECT_EQ(too_long.refused().field(), "prompt");
  EXPECT_EQ(too_long.refused().retry_seconds(), 0);
  EXPECT_EQ(service_->num_sequences(), 0U);
}

TEST_F(ServiceTest, AFullMailboxRefusesSubmitsAndKeepsCancels) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  mailbox_.set_full(true);
  router.submit(2);
  EXPECT_EQ(next_but_beats(router).refused().code(),
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  router.cancel(1);
  ASSERT_TRUE(eventually([&] { return service_->num_sequences() == 0; }));
  mailbox_.set_full(false);
  EXPECT_TRUE(eventually([&] {
    report();
    return mailbox_.cancelled() == std::vector<uint64_t>{raw(sequence(0))};
  }));
}

TEST_F(ServiceTest, CancelIsSilentAndPausesArePassedOn) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  router.submit(2);
  router.pause(2, true);
  router.pause(2, true);
  router.pause(2, false);
  router.pause(99, true);
  router.cancel(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.cancelled().size() == 1; }));
  EXPECT_THAT(mailbox_.cancelled(), ElementsAre(raw(sequence(0))));
  EXPECT_THAT(mailbox_.paused(), ElementsAre(raw(sequence(1))));
  EXPECT_THAT(mailbox_.unpaused(), ElementsAre(raw(sequence(1))));
  report({token_of(sequence(0), 10), token_of(sequence(1), 20)});
  EXPECT_THAT(next_but_beats(router).step().token(), ElementsAre(20));
}

TEST_F(ServiceTest, AnEndedSessionTakesItsSequencesWithIt) {
  start();
  serve();
  auto leaving = std::make_unique<Router>(*stub_);
  Router staying(*stub_);
  leaving->next();
  leaving->submit(1);
  leaving->submit(2);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 2; }));
  staying.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 3; }));
  leaving->end();
  ASSERT_TRUE(eventually([&] { return mailbox_.cancelled().size() == 2; }));
  EXPECT_THAT(mailbox_.cancelled(),
              ::testing::UnorderedElementsAre(raw(sequence(0)), raw(sequence(1))));
  EXPECT_EQ(service_->num_sequences(), 1U);
}

TEST_F(ServiceTest, WhatWasSentBeforeTheWorkerShutsDownArrives) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  constexpr int kTokens = 1000;
  for (int i = 0; i < kTokens; ++i) report({token_of(sequence(0), i % 100)});
  report({end_of(sequence(0))});
  EXPECT_EQ(service_->num_sequences(), 0U);
  service_->close();
  int num_tokens = 0;
  bool finished = false;
  for (;;) {
    const WorkerFrame frame = router.next();
    if (router.ended()) break;
    num_tokens += frame.step().token_size();
    finished = finished || frame.step().finished_size() > 0;
  }
  EXPECT_EQ(num_tokens, kTokens);
  EXPECT_TRUE(finished);
  EXPECT_EQ(router.finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// Or routers take the end for a death, which costs what was under way to the worker a retry.
TEST_F(ServiceTest, AWorkerSaysThatItDrainsBeforeItsSessionsEnd) {
  start();
  serve();
  Router router(*stub_);
  EXPECT_FALSE(router.next().load().draining());
  service_->drain(absl::Now());
  service_->close();  // no report has come since
  bool draining = false;
  for (;;) {
    const WorkerFrame frame = router.next();
    if (router.ended()) break;
    draining = frame.load().draining();
  }
  EXPECT_TRUE(draining);
}

}  // namespace
}  // namespace lckv
