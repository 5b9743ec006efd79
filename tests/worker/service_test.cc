// EngineService over a real socket: the engine's side is played by the test.
#include "worker/service/engine_service.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "rpc/server_options.h"

namespace lckv {
namespace {

using internal::v1::RouterFrame;
using internal::v1::Submit;
using internal::v1::WorkerFrame;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

bool eventually(const std::function<bool()>& condition) {
  for (const absl::Time end = absl::Now() + kPatience; absl::Now() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return condition();
}

class Mailbox {
 public:
  absl::Status post(EngineCommand command) {
    const std::lock_guard lock(mutex_);
    if (full_) return absl::ResourceExhaustedError("the mailbox is full");
    commands_.push_back(std::move(command));
    return absl::OkStatus();
  }
  void set_full(bool full) {
    const std::lock_guard lock(mutex_);
    full_ = full;
  }
  uint64_t size() {
    const std::lock_guard lock(mutex_);
    return commands_.size();
  }
  std::vector<SubmitCommand> submits() { return all<SubmitCommand>(); }
  std::vector<uint64_t> cancelled() { return ids<CancelCommand>(); }
  std::vector<uint64_t> paused() { return ids<PauseCommand>(); }
  std::vector<uint64_t> unpaused() { return ids<UnpauseCommand>(); }

 private:
  template <typename Command>
  std::vector<Command> all() {
    const std::lock_guard lock(mutex_);
    std::vector<Command> found;
    for (const EngineCommand& command : commands_) {
      if (const auto* one = std::get_if<Command>(&command)) found.push_back(*one);
    }
    return found;
  }
  template <typename Command>
  std::vector<uint64_t> ids() {
    std::vector<uint64_t> found;
    for (const Command& command : all<Command>()) found.push_back(raw(command.sequence));
    return found;
  }

  std::mutex mutex_;
  std::vector<EngineCommand> commands_;
  bool full_ = false;
};

class ServiceTest : public ::testing::Test {
 protected:
  class Router {
   public:
    explicit Router(internal::v1::Engine::Stub& stub, bool opens = true) {
      call_.set_wait_for_ready(true);
      call_.set_deadline(absl::ToChronoTime(absl::Now() + 3 * kPatience));
      stream_ = stub.Session(&call_);
      RouterFrame frame;
      frame.mutable_open()->set_router_id("test");
      if (opens) stream_->Write(frame);
    }
    ~Router() {
      if (stream_ != nullptr) end();
    }

    bool write(const RouterFrame& frame) { return stream_->Write(frame); }
    void submit(uint64_t handle, uint32_t first_token = 5) {
      RouterFrame frame;
      Submit& submit = *frame.mutable_submit();
      submit.set_handle(handle);
      submit.add_prompt(first_token);
      submit.mutable_sampling()->set_top_p(1);
      submit.mutable_sampling()->set_repetition_penalty(1);
      stream_->Write(frame);
    }
    void cancel(uint64_t handle) {
      RouterFrame frame;
      frame.mutable_cancel()->set_handle(handle);
      stream_->Write(frame);
    }
    void pause(uint64_t handle, bool pause) {
      RouterFrame frame;
      if (pause) {
        frame.mutable_pause()->set_handle(handle);
      } else {
        frame.mutable_continue_()->set_handle(handle);
      }
      stream_->Write(frame);
    }
    // The next frame; an empty one where the session has ended.
    WorkerFrame next() {
      WorkerFrame frame;
      ended_ = !stream_->Read(&frame);
      return frame;
    }
    bool ended() const { return ended_; }
    grpc::Status end() {
      call_.TryCancel();
      return finish();
    }
    // For sessions that the worker ends.
    grpc::Status finish() {
      WorkerFrame frame;
      while (stream_->Read(&frame)) {
      }
      grpc::Status status = stream_->Finish();
      stream_ = nullptr;
      return status;
    }

   private:
    grpc::ClientContext call_;
    std::unique_ptr<grpc::ClientReaderWriter<RouterFrame, WorkerFrame>> stream_;
    bool ended_ = false;
  };

  void start(ServiceOptions options = {}) {
    service_ = std::make_unique<EngineService>(options, &metrics_);
    grpc::ServerBuilder builder;
    configure_internal_server(builder);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    stub_ = internal::v1::Engine::NewStub(
        grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                  grpc::InsecureChannelCredentials(), internal_channel_arguments()));
  }
  void serve() {
    internal::v1::Hello hello;
    hello.set_model("m");
    service_->serve(std::move(hello), {.vocabulary = 100, .max_context = 16, .max_logprobs = 5},
                    [this](EngineCommand command) { return mailbox_.post(std::move(command)); });
  }
  void TearDown() override {
    service_->close();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    EXPECT_EQ(service_->num_sequences(), 0U);
  }

  // A turn of the loop that took all commands.
  StepReport turn(std::vector<SequenceEvent> events = {}) {
    StepReport report{.step = step_, .ran_step = !events.empty(), .events = std::move(events)};
    if (report.ran_step) report.step = ++step_;
    report.num_commands = mailbox_.size();
    return report;
  }
  void report(std::vector<SequenceEvent> events = {}) { service_->report(turn(std::move(events))); }
  SequenceId sequence(size_t submit) { return mailbox_.submits().at(submit).sequence; }
  // Reads beats away.
  static WorkerFrame next_but_beats(Router& router) {
    for (;;) {
      WorkerFrame frame = router.next();
      if (router.ended() || frame.frame_case() != WorkerFrame::FRAME_NOT_SET) return frame;
    }
  }

  WorkerMetrics metrics_{std::make_shared<prometheus::Registry>(), "m", "0"};
  Mailbox mailbox_;
  std::unique_ptr<EngineService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Engine::Stub> stub_;
  uint64_t step_ = 0;
};

SequenceEvent token_of(SequenceId id, int32_t token) { return {.sequence = id, .token = token}; }
SequenceEvent end_of(SequenceId id) {
  return {.kind = SequenceEvent::Kind::kFinished, .sequence = id};
}

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
  EXPECT_EQ(of_first.load().num_sessions(), 2U);
  const WorkerFrame of_second = next_but_beats(second);
  EXPECT_THAT(of_second.step().token(), ElementsAre(20));
  EXPECT_EQ(service_->num_sequences(), 2U);
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

TEST_F(ServiceTest, CreditCountsWhatIsInTheMailbox) {
  start({.max_waiting = 4, .beat_interval = absl::ZeroDuration()});
  serve();
  Router router(*stub_);
  router.next();
  for (const uint64_t handle : {1, 2, 3}) router.submit(handle);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 3; }));
  StepReport behind = turn();
  behind.num_commands = 1;
  service_->report(behind);
  const WorkerFrame frame = router.next();
  EXPECT_EQ(frame.load().credit(), 2U);
  EXPECT_EQ(frame.load().num_taken(), 3U);
}

TEST_F(ServiceTest, ADrainingWorkerSaysSoAndTakesNothingNew) {
  start();
  serve();
  Router router(*stub_);
  router.next();
  router.submit(1);
  ASSERT_TRUE(eventually([&] { return mailbox_.size() == 1; }));
  service_->drain();
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
