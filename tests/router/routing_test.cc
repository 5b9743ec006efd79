#include "router/routing/routing_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "router/routing/stable_hash.h"
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
    policy_ = make_routing_policy("least-loaded");
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

// Replicas with ids of their own, as policies that hash see them.
class HashingTest : public RoutingTest {
 protected:
  ReplicaSet fleet_of(size_t count, uint32_t running = 0) {
    ReplicaSet set = set_of(std::vector<Loaded>(count, {.running = running, .credit = 1000}));
    for (size_t i = 0; i < count; ++i) {
      auto model = std::make_shared<ModelInfo>(*model_);
      model->hello.set_replica_id(absl::StrCat("replica-", i));
      set.replicas[i].model = std::move(model);
    }
    return set;
  }
  static std::string id_of(const ReplicaSet& set, size_t i) {
    return set.replicas[i].model->hello.replica_id();
  }
  RoutingKey key_of(uint64_t prefix) {
    return {.model = model_, .prefix_hash = mix(prefix + 1), .ticket = prefix};
  }
};

TEST_F(RoutingTest, EveryPolicyTakesOnlyWhoCanTakeAndSomeoneWhoCan) {
  std::mt19937_64 random(7);
  for (const std::string& name : policy_names()) {
    const auto policy = make_routing_policy(name);
    EXPECT_EQ(policy->name(), name);
    for (int round = 0; round < 500; ++round) {
      std::vector<Loaded> loads(1 + random() % 6);
      for (Loaded& load : loads) {
        load = {.running = static_cast<uint32_t>(random() % 20),
                .credit = static_cast<uint32_t>(random() % 3),
                .state = random() % 3 == 0 ? ReplicaState::kDraining : ReplicaState::kReady};
      }
      const ReplicaSet set = set_of(loads);
      const RoutingKey key{.model = model_,
                           .affinity = random() % 2 == 0 ? "talk" : "",
                           .prefix_hash = random(),
                           .num_sequences = static_cast<uint32_t>(1 + random() % 2),
                           .ticket = random()};
      const bool possible = std::any_of(set.replicas.begin(), set.replicas.end(),
                                        [&](const auto& r) { return can_take(key, r); });
      const auto picked = policy->pick(key, set);
      ASSERT_EQ(picked.has_value(), possible) << name << " round " << round;
      if (picked) ASSERT_TRUE(can_take(key, set.replicas[*picked])) << name << " round " << round;
      ASSERT_EQ(policy->pick(key, set), picked) << name;
    }
  }
}

TEST_F(RoutingTest, RoundRobinTakesTurnsWhateverTheLoad) {
  policy_ = make_routing_policy("round-robin");
  const ReplicaSet set = set_of({{.running = 9}, {}, {.credit = 0}, {.running = 3}});
  std::array<int, 4> hits = {};
  for (uint64_t ticket = 0; ticket < 9; ++ticket) ++hits[*pick(set, 1, ticket)];
  EXPECT_EQ(hits, (std::array<int, 4>{3, 3, 0, 3}));
}

TEST_F(RoutingTest, TwoChoicesNeverTakesTheWorstAndSpreadsOverTheRest) {
  policy_ = make_routing_policy("power-of-two-choices");
  const ReplicaSet set = set_of({{.running = 1}, {.running = 9}, {.running = 2}, {.running = 3}});
  std::array<int, 4> hits = {};
  for (uint64_t ticket = 0; ticket < 1200; ++ticket) ++hits[*pick(set, 1, ticket)];
  EXPECT_EQ(hits[1], 0);
  // Of the six pairs: three, two and one contain it as the better one.
  EXPECT_NEAR(hits[0], 600, 100);
  EXPECT_NEAR(hits[2], 400, 100);
  EXPECT_NEAR(hits[3], 200, 100);
}

TEST_F(HashingTest, ReplicaThatLeavesMovesOnlyItsOwnPrefixes) {
  policy_ = make_routing_policy("prefix-affinity");
  const ReplicaSet whole = fleet_of(8);
  ReplicaSet less = whole;
  less.replicas.erase(less.replicas.begin() + 3);
  std::array<int, 8> hits = {};
  for (uint64_t prefix = 0; prefix < 4000; ++prefix) {
    const size_t before = *policy_->pick(key_of(prefix), whole);
    const size_t after = *policy_->pick(key_of(prefix), less);
    ++hits[before];
    if (before != 3) ASSERT_EQ(id_of(whole, before), id_of(less, after)) << prefix;
  }
  for (const int count : hits) EXPECT_NEAR(count, 500, 100);
}

TEST_F(HashingTest, OrderOfReplicasDoesNotMatterSoRoutersAgree) {
  const ReplicaSet set = fleet_of(8, 3);
  ReplicaSet turned = set;
  std::reverse(turned.replicas.begin(), turned.replicas.end());
  for (const char* name : {"prefix-affinity", "affinity-key"}) {
    policy_ = make_routing_policy(name);
    for (uint64_t prefix = 0; prefix < 200; ++prefix) {
      RoutingKey key = key_of(prefix);
      key.affinity = absl::StrCat("conversation ", prefix);
      EXPECT_EQ(id_of(set, *policy_->pick(key, set)), id_of(turned, *policy_->pick(key, turned)));
    }
  }
}

TEST_F(HashingTest, NoReplicaIsGivenMoreThanItsBoundedShare) {
  policy_ = make_routing_policy("prefix-affinity");
  ReplicaSet set = fleet_of(8);
  for (uint32_t placed = 1; placed <= 400; ++placed) {
    const size_t i = *policy_->pick(key_of(0), set);  // all prompts begin alike
    set.replicas[i].load.set_num_running(set.replicas[i].load.num_running() + 1);
    const double bound = std::max(2.0, std::ceil(1.1 * placed / 8));
    ASSERT_LE(set.replicas[i].load.num_running(), bound) << placed;
  }
}

TEST_F(HashingTest, AffinityGoesBeforeThePrefixAndIsNotNeeded) {
  const ReplicaSet set = fleet_of(8);
  const auto by_prefix = make_routing_policy("prefix-affinity");
  const auto by_key = make_routing_policy("affinity-key");
  std::set<size_t> picked;
  for (uint64_t prefix = 0; prefix < 50; ++prefix) {
    RoutingKey key = key_of(prefix);
    key.affinity = "one conversation";
    picked.insert(*by_prefix->pick(key, set));
    picked.insert(*by_key->pick(key, set));
  }
  EXPECT_EQ(picked.size(), 1u);
  std::set<size_t> spread;
  for (uint64_t ticket = 0; ticket < 8; ++ticket) spread.insert(*by_key->pick(key_of(ticket), set));
  EXPECT_EQ(spread.size(), 8u);  // as least-loaded
}

TEST(PrefixHashTest, WholeLeadingBlocksAndTheTenantCount) {
  std::vector<uint32_t> prompt(40);
  std::iota(prompt.begin(), prompt.end(), 100);
  std::vector<uint32_t> longer = prompt;
  longer.resize(47, 5);
  EXPECT_EQ(prefix_hash("", prompt), prefix_hash("", longer));  // two whole blocks both
  longer.push_back(5);
  EXPECT_NE(prefix_hash("", prompt), prefix_hash("", longer));
  EXPECT_NE(prefix_hash("", prompt), prefix_hash("acme", prompt));
  prompt[31] ^= 1;
  EXPECT_NE(prefix_hash("", prompt),
            prefix_hash("", std::vector(longer.begin(), longer.end() - 1)));
  EXPECT_NE(prefix_hash("", {1, 2}), prefix_hash("", {1, 3}));
  std::vector<uint32_t> long_prompt(kMaxPrefixTokens, 9);
  std::vector<uint32_t> grown = long_prompt;
  grown.resize(kMaxPrefixTokens * 2, 4);
  EXPECT_EQ(prefix_hash("", long_prompt), prefix_hash("", grown));
  // Routers of other builds must agree with this one.
  EXPECT_EQ(mix(1), 0x5692161d100b05e5u);
}

TEST_F(RoutingTest, UnknownPolicyIsNone) { EXPECT_EQ(make_routing_policy("fastest"), nullptr); }

}  // namespace
}  // namespace lckv
