#include "router/routing/routing_policy.h"

#include <array>

#include "gtest/gtest.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

struct Loaded {
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint32_t in_flight = 0;
  uint32_t credit = 10;
  uint64_t free_blocks = 100;
  ReplicaState state = ReplicaState::kReady;
};

class RoutingTest : public ::testing::Test {
 protected:
  RoutingTest() {
    internal::v1::Hello hello = demo_hello();
    hello.clear_tokenizer();
    model_ = *make_model_info(hello, nullptr);
    hello.set_fingerprint("other");
    other_ = *make_model_info(hello, nullptr);
    policy_ = make_routing_policy(policy_names().front());
  }

  ReplicaSet set_of(const std::vector<Loaded>& loads) {
    ReplicaSet set;
    for (const Loaded& from : loads) {
      ReplicaView view{.state = from.state, .model = model_, .num_in_flight = from.in_flight};
      view.load.set_num_running(from.running);
      view.load.set_num_waiting(from.waiting);
      view.load.set_credit(from.credit);
      view.load.set_num_free_blocks(from.free_blocks);
      view.load.set_num_blocks(100);
      set.replicas.push_back(view);
    }
    return set;
  }

  std::optional<size_t> pick(const ReplicaSet& set, uint32_t sequences = 1, uint64_t ticket = 0,
                             const std::string& fingerprint = "") {
    return policy_->pick(
        {.model = model_, .fingerprint = fingerprint, .num_sequences = sequences, .ticket = ticket},
        set);
  }

  std::shared_ptr<const ModelInfo> model_;
  std::shared_ptr<const ModelInfo> other_;
  std::unique_ptr<const RoutingPolicy> policy_;
};

TEST_F(RoutingTest, FewestSequencesIncludingThoseInFlight) {
  EXPECT_EQ(pick(set_of({{.running = 3}, {.running = 1, .waiting = 1}, {.running = 4}})), 1u);
  EXPECT_EQ(pick(set_of({{.running = 3}, {.running = 1, .in_flight = 3}})), 0u);
}

TEST_F(RoutingTest, OfEqualsTheOneWithMostFreeBlocksThenInTurn) {
  EXPECT_EQ(pick(set_of({{.free_blocks = 10}, {.free_blocks = 90}})), 1u);
  const ReplicaSet equal = set_of({{}, {}, {}});
  std::array<int, 3> hits = {};
  for (uint64_t ticket = 0; ticket < 9; ++ticket) ++hits[*pick(equal, 1, ticket)];
  EXPECT_EQ(hits, (std::array<int, 3>{3, 3, 3}));
}

TEST_F(RoutingTest, OnlyReadyReplicasWithCreditForAllSequences) {
  EXPECT_EQ(pick(set_of({{.credit = 4, .state = ReplicaState::kLost},
                         {.state = ReplicaState::kDraining},
                         {.state = ReplicaState::kUnresponsive}})),
            std::nullopt);
  const ReplicaSet set = set_of({{.in_flight = 8}, {.running = 5, .credit = 4}});
  EXPECT_EQ(pick(set, 4), 1u);
  EXPECT_EQ(pick(set, 5), std::nullopt);
}

TEST_F(RoutingTest, FingerprintBinds) {
  ReplicaSet set = set_of({{}, {.running = 9}});
  set.replicas[0].model = other_;
  EXPECT_EQ(pick(set), 0u);
  EXPECT_EQ(pick(set, 1, 0, "fingerprint-1"), 1u);
}

TEST_F(RoutingTest, UnknownPolicyIsNone) { EXPECT_EQ(make_routing_policy("fastest"), nullptr); }

}  // namespace
}  // namespace lckv
