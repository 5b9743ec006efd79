// A leader and ranks over real sockets: who may join, the rendezvous, plans in order, how ranks
// follow them, and what the leader hears of ranks that fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <future>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "worker/group/follower_link.h"
#include "worker/group/leader_address.h"
#include "worker/group/leader_group.h"
#include "worker/group/run_rank.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;

// Far longer than anything here takes: only a defect waits this long.
constexpr absl::Duration kDeadline = absl::Seconds(60);

RankIdentity identity(int32_t rank) {
  return {.rank = rank,
          .world_size = 3,
          .life = "a",
          .version = "1",
          .model = "m",
          .layer_map = "l",
          .numerics = "n",
          .step_limits = "s"};
}

class GroupTest : public testing::Test {
 protected:
  void SetUp() override {
    group_ = LeaderGroup::open("127.0.0.1:0", {}, [this](const RankFailure& failure) {
               const std::lock_guard lock(mutex_);
               failures_.push_back(failure);
               changed_.notify_all();
             }).value();
    address_ = absl::StrCat("127.0.0.1:", group_->port());
  }
  absl::StatusOr<std::unique_ptr<FollowerLink>> join(const RankIdentity& rank) {
    return FollowerLink::join(address_, {}, rank, absl::Now() + kDeadline);
  }
  std::future<absl::Status> admit() {
    return std::async(std::launch::async,
                      [this] { return group_->admit(identity(0), absl::Now() + kDeadline); });
  }
  // Both ranks joined.
  void start() {
    auto admitted = admit();
    for (const int rank : {1, 2}) links_.push_back(join(identity(rank)).value());
    ASSERT_EQ(admitted.get(), absl::OkStatus());
  }
  RankFailure wait_for_failure() {
    std::unique_lock lock(mutex_);
    const bool came = changed_.wait_for(lock, absl::ToChronoSeconds(kDeadline),
                                        [this] { return !failures_.empty(); });
    return came ? failures_.front() : RankFailure{.rank = -1, .why = "nothing failed"};
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<RankFailure> failures_;
  std::unique_ptr<LeaderGroup> group_;
  std::vector<std::unique_ptr<FollowerLink>> links_;
  std::string address_;
};

TEST_F(GroupTest, RanksThatComeFirstWaitForTheLeader) {
  auto early = std::async(std::launch::async, [this] { return join(identity(2)); });
  auto admitted = admit();
  const auto second = join(identity(1));
  ASSERT_TRUE(second.ok()) << second.status();
  const auto first = early.get();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(admitted.get(), absl::OkStatus());
  EXPECT_EQ((*first)->life(), group_->life());
  group_->end(absl::Now() + kDeadline);
}

TEST_F(GroupTest, EachDifferenceIsNamed) {
  const std::vector<std::pair<std::string RankIdentity::*, std::string>> traits = {
      {&RankIdentity::version, "different version of the program: 1 on the leader, x on rank 1"},
      {&RankIdentity::model, "different content of the model: m on the leader, x on rank 1"},
      {&RankIdentity::layer_map, "different layer map: l on the leader, x on rank 1"},
      {&RankIdentity::numerics, "different numerics: n on the leader, x on rank 1"},
      {&RankIdentity::step_limits, "different limits of steps: s on the leader, x on rank 1"}};
  for (const auto& [trait, message] : traits) {
    RankIdentity rank = identity(1);
    rank.*trait = "x";
    EXPECT_EQ(compare_identities(identity(0), rank), absl::FailedPreconditionError(message));
  }
  RankIdentity rank = identity(1);
  rank.world_size = 2;
  EXPECT_EQ(compare_identities(identity(0), rank).message(),
            "different --tensor-parallel-size: 3 on the leader, 2 on rank 1");
  EXPECT_EQ(compare_identities(identity(0), identity(1)), absl::OkStatus());
}

TEST_F(GroupTest, MisfitEndsBothRankAndLeader) {
  auto admitted = admit();
  RankIdentity other = identity(1);
  other.model = "another";
  const auto refused = join(other);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("different content of the model"));
  EXPECT_EQ(admitted.get(), refused.status());
}

TEST_F(GroupTest, RankOfAnotherLifeNeitherJoinsNorEndsTheLeader) {
  auto admitted = admit();
  RankIdentity old = identity(1);
  old.life = "before";
  EXPECT_EQ(join(old).status().message(), "rank 1 belongs to another life of this replica");
  links_.push_back(join(identity(1)).value());
  EXPECT_EQ(join(identity(1)).status().message(), "rank 1 has joined already");
  EXPECT_EQ(join(identity(0)).status().message(), "rank 0 is not one of 1 to 2");
  EXPECT_EQ(join(identity(3)).status().message(), "rank 3 is not one of 1 to 2");
  links_.push_back(join(identity(2)).value());
  EXPECT_EQ(admitted.get(), absl::OkStatus());
  // Too late to harm a replica that runs.
  RankIdentity other = identity(1);
  other.model = "another";
  EXPECT_FALSE(join(other).ok());
  group_->end(absl::Now() + kDeadline);
  EXPECT_TRUE(failures_.empty());
}

// Streams without a frame, as of a stranger that reached the port.
class SilentStreams {
 public:
  SilentStreams(const std::string& leader, size_t count)
      : stub_(internal::v1::Ranks::NewStub(
            grpc::CreateChannel(leader, grpc::InsecureChannelCredentials()))),
        calls_(count) {
    for (auto& call : calls_) streams_.push_back(stub_->Join(&call));
    for (auto& stream : streams_) {
      ends_.push_back(std::async(std::launch::async, [&stream] { return stream->Finish(); }));
    }
  }
  ~SilentStreams() {
    for (auto& call : calls_) call.TryCancel();
  }
  // Of those that have ended.
  std::map<grpc::StatusCode, size_t> codes() {
    std::map<grpc::StatusCode, size_t> counts;
    for (auto& end : ends_) {
      if (end.wait_for(std::chrono::seconds(0)) != std::future_status::ready) continue;
      codes_.push_back(end.get().error_code());
    }
    std::erase_if(ends_, [](const auto& end) { return !end.valid(); });
    for (const grpc::StatusCode code : codes_) ++counts[code];
    return counts;
  }
  bool have_ended(grpc::StatusCode code, size_t count) {
    const absl::Time deadline = absl::Now() + kDeadline;
    while (codes()[code] < count && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    return codes()[code] == count;
  }

 private:
  const std::unique_ptr<internal::v1::Ranks::Stub> stub_;
  std::vector<grpc::ClientContext> calls_;
  std::vector<
      std::unique_ptr<grpc::ClientReaderWriter<internal::v1::RankFrame, internal::v1::LeaderFrame>>>
      streams_;
  std::vector<std::future<grpc::Status>> ends_;
  std::vector<grpc::StatusCode> codes_;
};

TEST_F(GroupTest, StreamsThatDoNotJoinAreBoundedAndEnd) {
  SilentStreams silent(address_, 257);
  ASSERT_TRUE(silent.have_ended(grpc::StatusCode::RESOURCE_EXHAUSTED, 1));
  group_->look(absl::Now());
  EXPECT_EQ(silent.codes()[grpc::StatusCode::DEADLINE_EXCEEDED], 0u);
  group_->look(absl::Now() + absl::Seconds(6));
  EXPECT_TRUE(silent.have_ended(grpc::StatusCode::DEADLINE_EXCEEDED, 256));
  start();
  group_->look(absl::Now() + absl::Hours(1));
  group_->end(absl::Now() + kDeadline);
  EXPECT_TRUE(failures_.empty());
}

// Of a new pod a cluster's name servers hear seconds after it has begun.
TEST(AddressOfLeader, IsWaitedForWhereANameDoesNotLeadHereYet) {
  const auto never = [](absl::Duration) { return false; };
  for (const char* const given : {"127.0.0.1:0", "[::1]:50063", "192.0.2.1:50063"}) {
    EXPECT_EQ(address_of_leader(given, absl::InfinitePast(), never).value(), given);
  }
  const auto local = address_of_leader("localhost:50063", absl::InfinitePast(), never);
  EXPECT_TRUE(local.value() == "127.0.0.1:50063" || local.value() == "[::1]:50063") << *local;
  int num_waits = 0;
  const auto twice = [&](absl::Duration) { return ++num_waits == 2; };
  const auto stopped = address_of_leader("no-such-host.invalid:1", absl::InfiniteFuture(), twice);
  EXPECT_TRUE(absl::IsCancelled(stopped.status())) << stopped.status();
  const auto late = address_of_leader("no-such-host.invalid:1", absl::InfinitePast(), never);
  EXPECT_TRUE(absl::IsUnavailable(late.status())) << late.status();
  EXPECT_THAT(std::string(late.status().message()), HasSubstr("--leader no-such-host.invalid:1"));
}

TEST_F(GroupTest, SecondLeaderFindsTheAddressTaken) {
  const auto second = LeaderGroup::open(address_, {}, [](const RankFailure&) {});
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(address_));
}

TEST_F(GroupTest, MissingRanksAreNamed) {
  const absl::Status status = group_->admit(identity(0), absl::Now() + absl::Milliseconds(50));
  EXPECT_EQ(status, absl::DeadlineExceededError("ranks 1, 2 did not join"));
}

TEST_F(GroupTest, NoLeader) {
  group_.reset();
  const auto link =
      FollowerLink::join(address_, {}, identity(1), absl::Now() + absl::Milliseconds(300));
  EXPECT_EQ(link.status(), absl::DeadlineExceededError(
                               absl::StrCat("there is no leader at ", address_, " (--leader)")));
}

TEST_F(GroupTest, KeysOfOneRankReachAnother) {
  start();
  const RendezvousStore one = links_[0]->store();
  const RendezvousStore two = links_[1]->store();
  EXPECT_TRUE(absl::IsDeadlineExceeded(two.get("key", absl::Now()).status()));
  const std::string bytes("\0\xff\n", 3);
  ASSERT_EQ(one.set("key", bytes), absl::OkStatus());
  EXPECT_EQ(two.get("key", absl::Now() + kDeadline).value(), bytes);
  EXPECT_EQ(group_->store().get("key", absl::Now() + kDeadline).value(), bytes);
  group_->end(absl::Now() + kDeadline);
}

TEST_F(GroupTest, PlansComeInOrderToAllUntilTheEnd) {
  start();
  for (const auto& link : links_) ASSERT_EQ(link->ready(), absl::OkStatus());
  ASSERT_EQ(group_->wait_ready(absl::Now() + kDeadline), absl::OkStatus());
  constexpr uint64_t kSteps = 50;
  for (uint64_t step = 1; step <= kSteps; ++step) {
    group_->send({.step = step});
    group_->idle();
  }
  auto ended = std::async(std::launch::async, [this] { group_->end(absl::Now() + kDeadline); });
  for (const auto& link : links_) {
    for (uint64_t step = 1; step <= kSteps; ++step) {
      const auto turn = link->next();
      ASSERT_TRUE(turn.ok()) << turn.status();
      ASSERT_TRUE(turn->plan.has_value());
      ASSERT_EQ(turn->plan->step, step);
      ASSERT_FALSE(link->next().value().plan.has_value());
    }
    EXPECT_TRUE(link->next().value().end);
  }
  ended.get();
  EXPECT_TRUE(failures_.empty());
}

// Says what it is told to do, and lets two steps be launched.
class SaysWhatItDoes final : public StepRunner {
 public:
  void set_before_layer(std::function<void()>) override {}
  int max_launched() const override { return 2; }
  absl::Status launch(const StepPlan& plan, StepTimes&) override {
    said += absl::StrCat(" launch ", plan.step);
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> collect(StepTimes&) override {
    said += absl::StrCat(" collect ", ++num_collected_);
    if (num_collected_ == kLast) is_done.set_value();
    return StepResult{.step = num_collected_};
  }

  static constexpr uint64_t kLast = 4;
  std::promise<void> is_done;
  std::string said;

 private:
  uint64_t num_collected_ = 0;
};

// So that their exchanges come in one order on all ranks, and no rank waits for a plan that never
// comes while its leader waits for the rank.
TEST_F(GroupTest, RanksLaunchAndCollectAsTheLeaderDoes) {
  start();
  group_->send({.step = 1});
  group_->send({.step = 2});
  group_->idle();
  group_->send({.step = 3});
  group_->hold();
  group_->send({.step = 4});
  group_->hold();
  std::vector<std::future<void>> ranks;
  std::array<SaysWhatItDoes, 2> runners;
  for (size_t i = 0; i < runners.size(); ++i) {
    ranks.push_back(std::async(std::launch::async, [&, i] {
      RankProgress progress;
      EXPECT_EQ(run_rank(*links_[i], runners[i], progress), absl::OkStatus());
      EXPECT_EQ(progress.look().step, SaysWhatItDoes::kLast);
    }));
  }
  for (SaysWhatItDoes& runner : runners) {
    EXPECT_EQ(runner.is_done.get_future().wait_for(absl::ToChronoSeconds(kDeadline)),
              std::future_status::ready);
  }
  group_->end(absl::Now() + kDeadline);
  for (auto& rank : ranks) rank.get();
  for (const SaysWhatItDoes& runner : runners) {
    EXPECT_EQ(runner.said,
              " launch 1 launch 2 collect 1 launch 3 collect 2 collect 3 launch 4 collect 4");
  }
  EXPECT_TRUE(failures_.empty());
}

TEST_F(GroupTest, ResultsThatDifferAreTold) {
  start();
  group_->done(1, 77);
  ASSERT_EQ(links_[0]->done(1, 77), absl::OkStatus());
  ASSERT_EQ(links_[1]->done(1, 78), absl::OkStatus());
  const RankFailure failure = wait_for_failure();
  EXPECT_EQ(failure.step, 1);
  EXPECT_EQ(failure.rank, 2);
  EXPECT_THAT(failure.why, HasSubstr("came to different results"));
}

TEST_F(GroupTest, RankThatFailsSaysWhy) {
  start();
  links_[1]->say_failed({.step = 4, .operation = "all_reduce", .why = "out of luck"});
  const RankFailure failure = wait_for_failure();
  EXPECT_EQ(failure.rank, 2);
  EXPECT_EQ(failure.step, 4);
  EXPECT_EQ(failure.operation, "all_reduce");
  EXPECT_EQ(failure.why, "out of luck");
  EXPECT_FALSE(failure.second_hand);
}

TEST_F(GroupTest, RankThatIsGoneIsMissed) {
  start();
  links_.pop_back();
  const RankFailure failure = wait_for_failure();
  EXPECT_EQ(failure.rank, 2);
  EXPECT_TRUE(failure.second_hand);
}

TEST_F(GroupTest, LeaderThatIsGoneIsMissed) {
  start();
  auto next = std::async(std::launch::async, [this] { return links_[0]->next(); });
  links_[1].reset();
  group_.reset();  // as an orderly end
  const auto turn = next.get();
  ASSERT_TRUE(turn.ok()) << turn.status();
  EXPECT_TRUE(turn->end);
  EXPECT_FALSE(links_[0]->next().ok());
}

}  // namespace
}  // namespace lckv
