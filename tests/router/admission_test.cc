#include "router/admission.h"

#include "gtest/gtest.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();

class AdmissionTest : public ::testing::Test {
 protected:
  AdmissionTest() {
    internal::v1::Hello hello = demo_hello();
    hello.clear_tokenizer();
    model_ = *make_model_info(hello, nullptr);
  }

  // A replica that seats 10 a second for 2 s each, where `urgent` and `ordinary` ones wait.
  ReplicaView replica(uint32_t urgent, uint32_t ordinary) const {
    ReplicaView view{.state = ReplicaState::kReady, .model = model_};
    view.load.set_num_waiting(urgent + ordinary);
    view.load.set_seats_per_second(10);
    view.load.set_seat_seconds(2);
    for (const auto& [priority, count] : {std::pair(5, urgent), std::pair(0, ordinary)}) {
      internal::v1::PriorityCount& waiting = *view.load.add_waiting();
      waiting.set_priority(priority);
      waiting.set_count(count);
    }
    return view;
  }
  Outlook outlook(const ReplicaSet& set, int32_t priority, int64_t num_queued = 0) const {
    return outlook_of(set, {.model = model_}, priority, num_queued);
  }

  std::shared_ptr<const ModelInfo> model_;
};

TEST_F(AdmissionTest, WhoComesLaterWaitsForThoseBefore) {
  const ReplicaSet set{.replicas = {replica(4, 36), replica(0, 20)}};
  EXPECT_EQ(outlook(set, 0).wait, absl::Seconds(3));  // 60 at 20 a second
  EXPECT_EQ(outlook(set, 0).run, absl::Seconds(2));
  EXPECT_EQ(outlook(set, 0, /*num_queued=*/20).wait, absl::Seconds(4));
  EXPECT_EQ(outlook(set, 5).wait, absl::Seconds(0.2));  // only the urgent ones are before it
  EXPECT_EQ(outlook(set, 6).wait, absl::ZeroDuration());
}

TEST_F(AdmissionTest, OnlyReplicasThatWouldServeItCount) {
  ReplicaSet set{.replicas = {replica(0, 10), replica(0, 1000)}};
  set.replicas[1].state = ReplicaState::kDraining;
  EXPECT_EQ(outlook(set, 0).wait, absl::Seconds(1));
}

TEST_F(AdmissionTest, WithoutARowOrWithoutFiguresNothingIsRefused) {
  ReplicaSet set{.replicas = {replica(0, 0)}};
  EXPECT_EQ(outlook(set, 0).wait, absl::ZeroDuration());
  EXPECT_LE(lateness(outlook(set, 0), kNow, kNow + absl::Milliseconds(1)), absl::ZeroDuration());
  set.replicas[0] = replica(0, 100);
  set.replicas[0].load.set_seats_per_second(0);
  EXPECT_EQ(outlook(set, 0).wait, absl::ZeroDuration());
}

TEST_F(AdmissionTest, AReplicaWithRoomMeansNoWait) {
  const ReplicaSet set{.replicas = {replica(0, 1000), replica(0, 0)}};
  EXPECT_EQ(outlook(set, 0).wait, absl::ZeroDuration());
}

TEST_F(AdmissionTest, SequencesThatRunLongStillEnd) {
  ReplicaSet set{.replicas = {replica(0, 8)}};
  internal::v1::Load& load = set.replicas[0].load;
  load.set_num_running(64);
  load.set_seat_seconds(32);
  load.set_seats_per_second(1e-6);  // none has ended for a while
  EXPECT_EQ(outlook(set, 0).wait, absl::Seconds(4));
  load.set_seat_seconds(0);  // none has ever ended
  EXPECT_EQ(outlook(set, 0).wait, absl::ZeroDuration());
}

TEST_F(AdmissionTest, ACallThatCannotEndInTimeIsLate) {
  const Outlook outlook{.wait = absl::Seconds(6), .run = absl::Seconds(2)};
  EXPECT_LE(lateness(outlook, kNow, absl::InfiniteFuture()), absl::ZeroDuration());
  EXPECT_LE(lateness(outlook, kNow, kNow + absl::Seconds(11)), absl::ZeroDuration());
  // Of 9 s it may be expected to need 7.2.
  EXPECT_EQ(lateness(outlook, kNow, kNow + absl::Seconds(9)), absl::Seconds(0.8));
}

}  // namespace
}  // namespace lckv
