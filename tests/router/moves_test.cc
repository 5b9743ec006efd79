// Streams that move, through the whole router, against scripted leaders over loopback.
#include "tests/router/router_fixture.h"

namespace lckv {
namespace {

using internal::v1::Submit;

// Tokens up to `until`, then silence; a whole stream where `until` is beyond its end.
SubmitScript stop_at(std::atomic<uint32_t>& until) {
  return [&until](const std::shared_ptr<FakeSession>& session, const Submit& submit) {
    session->start(submit.handle());
    for (auto i = static_cast<uint32_t>(submit.resumed_size()); i < submit.max_new_tokens(); ++i) {
      if (i >= until) return;
      session->token(submit.handle(), 300 + i);
    }
    session->finish(submit.handle(), internal::v1::Finished::REASON_MAX_NEW_TOKENS);
  };
}

void expect_whole(const Outcome& outcome, size_t size) {
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  ASSERT_EQ(outcome.ids.size(), size);
  EXPECT_TRUE(outcome.in_order);
  for (uint32_t i = 0; i < size; ++i) EXPECT_EQ(outcome.ids[i], 300 + i);
  EXPECT_EQ(outcome.started.size(), 1u);
}

TEST_F(RouterTest, ADeadReplicasStreamsGoOnAtAnEqualOneOnly) {
  std::atomic<uint32_t> until = 7;
  auto dying = std::make_unique<FakeLeader>(demo_hello("a"), stop_at(until));
  start_ready({dying->address()});
  Outcome outcome;
  std::thread client([&] { outcome = run(request(20)); });
  ASSERT_TRUE(eventually([&] { return dying->num_submits() == 1; }));
  absl::SleepFor(absl::Milliseconds(200));
  const int port = dying->port();
  dying->kill();
  // One of another fingerprint comes first, then an equal one, in its place.
  internal::v1::Hello hello = demo_hello("b");
  hello.set_fingerprint("another");
  auto other = std::make_unique<FakeLeader>(hello, count_up, port);
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 1; }));
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(other->num_submits(), 0);
  other.reset();
  FakeLeader equal(demo_hello("c"), count_up, port);
  client.join();
  expect_whole(outcome, 20);
  EXPECT_EQ(outcome.finished.at(0).usage().num_resumes(), 1u);
  ASSERT_EQ(equal.submits().size(), 1u);
  EXPECT_EQ(equal.submits()[0].resumed_size(), 7);
}

TEST_F(RouterTest, ASilentReplicasStreamsMove) {
  std::atomic<uint32_t> until = 7;
  std::atomic<uint32_t> all = 1000;
  FakeLeader first(demo_hello("a"), stop_at(until));
  FakeLeader second(demo_hello("b"), stop_at(until));
  options_.fleet.link.times.beat_interval = absl::Hours(1);  // so that the leaders fall silent
  options_.fleet.link.times.unresponsive_after = absl::Milliseconds(300);
  options_.fleet.link.times.lost_after = absl::Milliseconds(600);
  start({first.address(), second.address()});
  ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == 2; }));
  Outcome outcome;
  std::thread client([&] { outcome = run(request(20)); });
  ASSERT_TRUE(eventually([&] { return first.num_submits() + second.num_submits() == 1; }));
  absl::SleepFor(absl::Milliseconds(100));
  until = all.load();
  client.join();
  expect_whole(outcome, 20);
}

TEST_F(RouterTest, NoRoomAtOneReplicaIsAskedForAgainNotToldToTheClient) {
  std::atomic<int> refusals = 2;
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    if (refusals-- <= 0) {
      count_up(session, submit);
      return;
    }
    internal::v1::WorkerFrame frame;
    frame.mutable_refused()->set_handle(submit.handle());
    frame.mutable_refused()->set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
    session->write(std::move(frame));
  });
  start_ready({leader.address()});
  expect_whole(run(request(5)), 5);
  EXPECT_EQ(leader.num_submits(), 3);
  EXPECT_EQ(router_->metrics().model("demo").retries->Value(), 2);
}

TEST_F(RouterTest, WithoutRetryBudgetNoRoomIsUnavailable) {
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    internal::v1::WorkerFrame frame;
    frame.mutable_refused()->set_handle(submit.handle());
    frame.mutable_refused()->set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
    session->write(std::move(frame));
  });
  options_.retries.capacity = 0;
  start_ready({leader.address()});
  const Outcome outcome = run(request(5));
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(retry_delay(outcome.status).has_value());
  EXPECT_EQ(leader.num_submits(), 1);
}

TEST_F(RouterTest, ARequestInWhoseStepThreeReplicasDiedIsPoison) {
  const auto seat = [](const std::shared_ptr<FakeSession>& session, const Submit& submit) {
    internal::v1::WorkerFrame frame;
    frame.mutable_seated()->add_handle(submit.handle());
    session->write(std::move(frame));
  };
  std::vector<std::unique_ptr<FakeLeader>> leaders;
  std::vector<std::string> addresses;
  for (const char* id : {"a", "b", "c", "d"}) {
    leaders.push_back(std::make_unique<FakeLeader>(demo_hello(id), seat));
    addresses.push_back(leaders.back()->address());
  }
  start_ready(addresses);
  Outcome outcome;
  std::thread client([&] { outcome = run(request(5)); });
  for (int death = 0; death < 3; ++death) {
    FakeLeader* holder = nullptr;
    ASSERT_TRUE(eventually([&] {
      for (const auto& leader : leaders) {
        if (leader->num_submits() > 0 && !leader->killed()) holder = leader.get();
      }
      return holder != nullptr;
    }));
    absl::SleepFor(absl::Milliseconds(200));
    holder->kill();
  }
  client.join();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInternal) << outcome.status;
  EXPECT_EQ(error_reason(outcome.status), "POISON");
}

TEST_F(RouterTest, AnOldSessionIsFollowedByANewOneBeforeItEnds) {
  std::atomic<bool> go = false;
  FakeLeader leader(demo_hello(), [&](const auto& session, const Submit& submit) {
    session->start(submit.handle());
    session->token(submit.handle(), 300);
    if (submit.max_new_tokens() == 20) eventually([&] { return go.load(); });
    for (uint32_t i = 1; i < submit.max_new_tokens(); ++i) {
      session->token(submit.handle(), 300 + i);
    }
    session->finish(submit.handle(), internal::v1::Finished::REASON_MAX_NEW_TOKENS);
  });
  options_.fleet.link.times.max_session_age = absl::Seconds(4);
  start_ready({leader.address()});
  Outcome outcome;
  std::thread client([&] { outcome = run(request(20)); });
  ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  ASSERT_TRUE(eventually([&] { return leader.num_sessions() == 2; }));
  expect_whole(run(request(5)), 5);  // on the new one
  go = true;
  client.join();
  expect_whole(outcome, 20);
  EXPECT_EQ(outcome.finished.at(0).usage().num_resumes(), 0u);
  EXPECT_TRUE(eventually([&] { return leader.num_sessions() > 2; }));
}

TEST_F(RouterTest, WhatASessionStillHasAtItsLastAgeMovesToTheNextOne) {
  std::atomic<uint32_t> until = 7;
  FakeLeader leader(demo_hello(), stop_at(until));
  options_.fleet.link.times.max_session_age = absl::Seconds(1);
  start_ready({leader.address()});
  Outcome outcome;
  std::thread client([&] { outcome = run(request(20)); });
  ASSERT_TRUE(eventually([&] { return leader.num_submits() == 1; }));
  ASSERT_TRUE(eventually([&] { return leader.num_sessions() == 2; }));
  until = 1000;
  client.join();
  expect_whole(outcome, 20);
  EXPECT_EQ(outcome.finished.at(0).usage().num_resumes(), 1u);
  ASSERT_EQ(leader.submits().size(), 2u);
  EXPECT_EQ(leader.submits()[1].resumed_size(), 7);
}

}  // namespace
}  // namespace lckv
