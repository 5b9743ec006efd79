// The whole router in this process, against scripted leaders over loopback.
#include "tests/router/router_fixture.h"

namespace lckv {
namespace {

using internal::v1::Submit;

TEST_F(RouterTest, RelaysAStreamOfTextInOrder) {
  FakeLeader leader(demo_hello(), count_up);
  start_ready({leader.address()});
  const Outcome outcome = run(request(50));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  ASSERT_EQ(outcome.ids.size(), 50u);
  EXPECT_TRUE(outcome.in_order);
  for (uint32_t i = 0; i < 50; ++i) EXPECT_EQ(outcome.ids[i], 300 + i);
  ASSERT_EQ(outcome.started.size(), 1u);
  EXPECT_TRUE(outcome.started[0].sampling().has_seed());
  EXPECT_EQ(outcome.started[0].fingerprint(), "fingerprint-1");
  ASSERT_EQ(outcome.finished.size(), 1u);
  EXPECT_EQ(outcome.finished[0].reason(), v1::Finished::REASON_MAX_NEW_TOKENS);
  EXPECT_EQ(outcome.finished[0].usage().num_generated_tokens(), 50u);

  grpc::ClientContext context;
  v1::DetokenizeRequest ids;
  ids.mutable_ids()->Add(outcome.ids.begin(), outcome.ids.end());
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&context, ids, &text).ok());
  EXPECT_EQ(outcome.text, text.text());
  EXPECT_TRUE(eventually([&] { return ready_.load(); }));
}

TEST_F(RouterTest, EveryChoiceGoesToOneReplicaAndEndsOnce) {
  FakeLeader first(demo_hello("a"), count_up);
  FakeLeader second(demo_hello("b"), count_up);
  start_ready({first.address(), second.address()});
  v1::GenerateRequest four = request(5);
  four.set_num_choices(4);
  const Outcome outcome = run(four);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.ids.size(), 20u);
  EXPECT_EQ(outcome.finished.size(), 4u);
  EXPECT_EQ(outcome.started.size(), 4u);
  EXPECT_EQ(std::max(first.num_submits(), second.num_submits()), 4);
  EXPECT_EQ(std::min(first.num_submits(), second.num_submits()), 0);
}

TEST_F(RouterTest, LateHelloIsLoadingThenReady) {
  FakeLeader leader(demo_hello(), count_up);
  leader.allow_hello(false);
  start({leader.address()});
  EXPECT_TRUE(eventually([&] { return count_state(ReplicaState::kLoading) == 1; }));
  const Outcome early = run(request(3));
  EXPECT_EQ(early.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(retry_delay(early.status).has_value());
  leader.allow_hello(true);
  EXPECT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  EXPECT_TRUE(run(request(3)).status.ok());
}

TEST_F(RouterTest, LostReplicaInterruptsAndResumeContinues) {
  std::atomic<bool> stall = true;
  auto script = [&stall](const std::shared_ptr<FakeSession>& session, const Submit& submit) {
    session->start(submit.handle());
    for (uint32_t i = static_cast<uint32_t>(submit.resumed_size()); i < 20; ++i) {
      if (stall && i == 7) return;
      session->token(submit.handle(), 300 + i);
    }
    session->finish(submit.handle(), internal::v1::Finished::REASON_MAX_NEW_TOKENS);
  };
  auto leader = std::make_unique<FakeLeader>(demo_hello("life-1"), script);
  const int port = leader->port();
  options_.queue.resume_timeout = absl::Milliseconds(100);
  start_ready({leader->address()});
  std::thread killer([&] {
    eventually([&] { return leader->num_submits() == 1; });
    absl::SleepFor(absl::Milliseconds(200));
    leader->kill();
  });
  const Outcome broken = run(request(20));
  killer.join();
  ASSERT_EQ(broken.status.code(), absl::StatusCode::kUnavailable) << broken.status;
  const auto progress = interrupted_progress(broken.status);
  ASSERT_TRUE(progress.has_value());
  EXPECT_EQ(progress->num_tokens(), broken.ids.size());
  EXPECT_EQ(broken.ids.size(), 7u);
  EXPECT_TRUE(eventually([&] { return count_state(ReplicaState::kLost) == 1; }));

  stall = false;
  FakeLeader again(demo_hello("life-2"), script, port);
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  v1::GenerateRequest rest = request(20);
  auto* choice = rest.mutable_resume()->add_choices();
  choice->mutable_ids()->Add(broken.ids.begin(), broken.ids.end());
  choice->set_num_text_bytes(broken.text.size());
  rest.mutable_resume()->set_fingerprint("fingerprint-1");
  const Outcome resumed = run(rest);
  ASSERT_TRUE(resumed.status.ok()) << resumed.status;
  EXPECT_TRUE(resumed.in_order);
  const Outcome whole = run(request(20));
  ASSERT_TRUE(whole.status.ok());
  std::vector<uint32_t> ids = broken.ids;
  ids.insert(ids.end(), resumed.ids.begin(), resumed.ids.end());
  EXPECT_EQ(ids, whole.ids);
  EXPECT_EQ(broken.text + resumed.text, whole.text);
  EXPECT_EQ(resumed.finished[0].usage().num_generated_tokens(), 20u);

  rest.mutable_resume()->set_fingerprint("another");
  EXPECT_EQ(run(rest).status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RouterTest, RefusalReachesTheClientWithItsField) {
  FakeLeader leader(demo_hello(), [](const auto& session, const Submit& submit) {
    internal::v1::WorkerFrame frame;
    frame.mutable_refused()->set_handle(submit.handle());
    frame.mutable_refused()->set_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
    frame.mutable_refused()->set_field("stopping.max_new_tokens");
    frame.mutable_refused()->set_message("can never fit");
    session->write(std::move(frame));
  });
  start_ready({leader.address()});
  const Outcome outcome = run(request(5));
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(violated_field(outcome.status), "stopping.max_new_tokens");
  EXPECT_FALSE(interrupted_progress(outcome.status).has_value());
}

TEST_F(RouterTest, CancelAndDeadlineReachTheReplica) {
  std::atomic<int> seen_cancels = 0;
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    session->start(submit.handle());
    session->token(submit.handle(), 300);
    if (eventually([&] { return session->cancelled(submit.handle()); })) ++seen_cancels;
  });
  start_ready({leader.address()});
  {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request(5));
    v1::GenerateEvent event;
    ASSERT_TRUE(reader->Read(&event));
    context.TryCancel();
    while (reader->Read(&event)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_TRUE(eventually([&] { return seen_cancels == 1; }));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(300)));
  EXPECT_EQ(run(request(5), context).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(eventually([&] { return seen_cancels == 2; }));
}

TEST_F(RouterTest, WithoutCreditCallsWaitInABoundedQueue) {
  std::atomic<bool> go = false;
  std::shared_ptr<FakeSession> session;
  std::mutex mutex;
  FakeLeader leader(demo_hello(), [&](const auto& s, const Submit& submit) {
    {
      std::lock_guard lock(mutex);
      session = s;
    }
    s->set_credit(0);
    s->start(submit.handle());
    eventually([&] { return go.load(); });
    s->set_credit(1000);
    s->token(submit.handle(), 300);
    s->finish(submit.handle(), internal::v1::Finished::REASON_EOS);
  });
  leader.set_credit(1);
  options_.queue.max_calls = 2;
  start_ready({leader.address()});
  std::vector<std::thread> threads;
  std::atomic<int> served = 0;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] { served += run(request(5)).status.ok(); });
    ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  }
  auto& depth = *router_->metrics().model("demo").queue_depth;
  ASSERT_TRUE(eventually([&] { return depth.Value() == 2; }));
  const Outcome refused = run(request(5));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(retry_delay(refused.status).has_value());
  EXPECT_EQ(leader.num_submits(), 1);
  go = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served, 3);
  EXPECT_EQ(depth.Value(), 0);
}

// Tokens with much to say about each.
internal::v1::WorkerFrame logprobs_of(uint64_t handle, int num_tokens) {
  internal::v1::WorkerFrame frame;
  auto& step = *frame.mutable_step();
  for (int i = 0; i < num_tokens; ++i) {
    step.add_handle(handle);
    step.add_token(300);
    auto* logprobs = step.add_logprobs();
    logprobs->set_own(-1);
    for (uint32_t k = 0; k < 20; ++k) {
      logprobs->add_top_ids(k);
      logprobs->add_top_logprobs(-2);
    }
  }
  return frame;
}

TEST_F(RouterTest, SlowReaderIsPausedThenEndedAndOthersGoOn) {
  std::atomic<bool> was_paused = false;
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    if (!submit.has_num_logprobs()) {
      count_up(session, submit);
      return;
    }
    session->start(submit.handle());
    // A pause may be long on its way.
    const absl::Time end = absl::Now() + absl::Seconds(20);
    for (int i = 0; (i < 400 || !was_paused) && absl::Now() < end; ++i) {
      if (session->cancelled(submit.handle())) break;
      if (session->paused(submit.handle())) {
        was_paused = true;
        eventually([&] {
          return session->cancelled(submit.handle()) || !session->paused(submit.handle());
        });
      }
      session->write(logprobs_of(submit.handle(), 100));
      absl::SleepFor(absl::Milliseconds(2));  // a step takes time: a pause can arrive
    }
  });
  options_.call.slow_reader_timeout = absl::Seconds(5);
  start_ready({leader.address()});
  v1::GenerateRequest heavy = request(500);
  heavy.mutable_output()->set_num_logprobs(20);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, heavy);
  EXPECT_TRUE(eventually([&] { return was_paused.load(); }));
  EXPECT_TRUE(run(request(20)).status.ok());
  EXPECT_TRUE(eventually([&] { return metric("lckv_router_rejected_total", "slow_reader") == 1; }));
  v1::GenerateEvent event;
  uint32_t num_tokens = 0;
  while (reader->Read(&event)) num_tokens += static_cast<uint32_t>(event.tokens().ids_size());
  const absl::Status status = to_absl_status(reader->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  const auto progress = interrupted_progress(status);
  ASSERT_TRUE(progress.has_value());
  EXPECT_EQ(progress->num_tokens(), num_tokens);
}

TEST_F(RouterTest, AReaderThatTakesNotEvenItsStatusIsResetAndItsPlaceIsFree) {
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    if (!submit.has_num_logprobs()) return count_up(session, submit);
    session->start(submit.handle());
    while (!session->cancelled(submit.handle()) && !session->paused(submit.handle())) {
      session->write(logprobs_of(submit.handle(), 100));
      absl::SleepFor(absl::Milliseconds(2));
    }
  });
  options_.call.slow_reader_timeout = absl::Seconds(2);
  options_.call.max_concurrent_requests = 1;
  start_ready({leader.address()});
  v1::GenerateRequest heavy = request(500);
  heavy.mutable_output()->set_num_logprobs(20);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, heavy);
  ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  absl::SleepFor(absl::Milliseconds(2500));
  EXPECT_EQ(run(request(5)).status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(eventually([&] { return run(request(5)).status.ok(); }));
  context.TryCancel();
  reader->Finish();
}

// A write that fails may tell of it before the cancellation does.
TEST_F(RouterTest, CallersWhoLeaveAmidWritesAreCounted) {
  constexpr int kNumCallers = 32;
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    session->start(submit.handle());
    for (int i = 0; i < 49; ++i) session->write(logprobs_of(submit.handle(), 10));
    eventually([&] { return session->cancelled(submit.handle()); });
  });
  start_ready({leader.address()});
  v1::GenerateRequest heavy = request(500);
  heavy.mutable_output()->set_num_logprobs(20);
  std::vector<grpc::ClientContext> contexts(kNumCallers);
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>>> readers;
  for (grpc::ClientContext& context : contexts) {
    readers.push_back(stub_->Generate(&context, heavy));
    v1::GenerateEvent event;
    ASSERT_TRUE(readers.back()->Read(&event));
  }
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  for (const auto& reader : readers) reader->Finish();
  EXPECT_TRUE(eventually([&] { return metric("lckv_router_inflight", "demo") == 0; }));
  EXPECT_EQ(metric("lckv_router_cancelled_total", "client"), kNumCallers);
}

TEST_F(RouterTest, SilenceOfTheOnlyReplicaEndsStreams) {
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    session->start(submit.handle());
    session->token(submit.handle(), 300);
  });
  options_.fleet.link.times.beat_interval = absl::Hours(1);  // so that the leader falls silent
  options_.fleet.link.times.unresponsive_after = absl::Milliseconds(300);
  options_.fleet.link.times.lost_after = absl::Milliseconds(900);
  options_.queue.resume_timeout = absl::Milliseconds(100);
  start({leader.address()});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  const Outcome outcome = run(request(5));
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(interrupted_progress(outcome.status).has_value());
}

TEST_F(RouterTest, StopEndsStreamsWithWhatWasDelivered) {
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    session->start(submit.handle());
    session->token(submit.handle(), 300);
  });
  start_ready({leader.address()});
  Outcome outcome;
  std::thread client([&] { outcome = run(request(5)); });
  ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  absl::SleepFor(absl::Milliseconds(200));
  router_->stop(absl::Milliseconds(100));
  client.join();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable) << outcome.status;
  ASSERT_TRUE(interrupted_progress(outcome.status).has_value());
  EXPECT_EQ(interrupted_progress(outcome.status)->num_tokens(), 1u);
}

TEST_F(RouterTest, ModelsAndReplicas) {
  FakeLeader leader(demo_hello(), count_up);
  start_ready({leader.address()});
  auto models = v1::Models::NewStub(channel_);
  v1::ListModelsResponse list;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(models->ListModels(&context, {}, &list).ok());
  }
  ASSERT_EQ(list.models_size(), 1);
  EXPECT_EQ(list.models(0).name(), "demo");
  EXPECT_TRUE(list.models(0).has_tokenizer());
  EXPECT_EQ(list.models(0).num_ready_replicas(), 1u);
  v1::GetModelRequest unknown;
  unknown.set_name("nothing");
  v1::Model model;
  {
    grpc::ClientContext context;
    EXPECT_EQ(models->GetModel(&context, unknown, &model).error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
  auto admin = v1::Admin::NewStub(channel_);
  v1::ListReplicasResponse replicas;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(admin->ListReplicas(&context, {}, &replicas).ok());
  }
  ASSERT_EQ(replicas.replicas_size(), 1);
  EXPECT_EQ(replicas.replicas(0).state(), v1::Replica::STATE_READY);
  v1::TokenizeResponse ids;
  v1::TokenizeRequest empty;
  empty.set_text("");
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, empty, &ids).ok());
  }
  EXPECT_THAT(ids.ids(), ::testing::ElementsAre(1));
}

}  // namespace
}  // namespace lckv
