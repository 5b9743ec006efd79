#include "tests/simulation/fleet_simulation.h"

#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/fleet/link_choice.h"
#include "tests/simulation/simulated_call.h"

namespace lckv::fleet_simulation {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(10);
constexpr absl::Duration kLoadTime = absl::Seconds(5);    // calls come, faults happen
constexpr absl::Duration kSettleTime = absl::Seconds(4);  // after the last stream ended
constexpr absl::Duration kDeadline = absl::Minutes(2);    // of every stream

class Simulation {
 public:
  Simulation(uint64_t seed, Defect defect)
      : dice_(seed), world_{.defect = defect, .dice = dice_, .now = begin_} {
    hello_.set_replica_id("any");
    hello_.set_model("m");
    hello_.set_vocabulary_size(2000);
    hello_.set_max_context_tokens(128);
    policy_ = make_routing_policy(policy_names().front());
    // Two kinds of replica, so that there is a wrong one to go on at.
    const std::pair<const char*, const char*> replicas[] = {
        {"a", "f"}, {"b", "f"}, {"c", "g"}, {"d", "g"}};
    for (const auto& [address, fingerprint] : replicas) {
      replicas_[address] = std::make_unique<SimulatedReplica>(address, fingerprint, dice_);
      open(address, *replicas_[address]);
    }
    CallQueueOptions options{.max_wait_for_ready = kDeadline};
    world_.queue = std::make_unique<CallQueue>(
        options, ReplicaSource{.snapshot = [this] { return snapshot(); }, .refresh = [] {}},
        *policy_, [](const std::string&, int) {});
  }

  Outcome run() {
    Outcome outcome;
    const absl::Time end_of_load = begin_ + kLoadTime;
    absl::Time settled = absl::InfiniteFuture();
    for (; world_.now < settled; world_.now += kTick) {
      const bool loaded = world_.now < end_of_load;
      if (loaded && one_in(25)) add_call();
      if (loaded && one_in(40)) outcome.num_crashes += inject_fault();
      if (!loaded && world_.now < end_of_load + kTick) {
        for (auto& [name, replica] : replicas_) replica->set_draining(false, false);
      }
      step();
      if (!check(outcome, false)) return outcome;
      if (settled == absl::InfiniteFuture() && !loaded && all_ended()) {
        settled = world_.now + kSettleTime;
      }
      if (world_.now > end_of_load + kDeadline) {
        outcome.error = "a stream is past its deadline";
        return outcome;
      }
    }
    check(outcome, true);
    outcome.num_streams = static_cast<int>(calls_.size());
    outcome.num_duplicates = num_duplicates_;
    for (const auto& link : links_) outcome.num_followed += link->num_followed();
    for (const auto& call : calls_) {
      outcome.num_resumes += call->num_resumes();
      if (outcome.error.empty()) outcome.error = call->verdict();
    }
    return outcome;
  }

 private:
  bool one_in(uint64_t count) { return dice_() % count == 0; }

  void open(const std::string& address, SimulatedReplica& replica) {
    const auto link = std::make_shared<SimulatedLink>(address, replica, replica.num_links(),
                                                      world_.defect, dice_);
    links_.push_back(link);
    replica.add_link(link);
    world_.links[address] = link;
  }

  // As the fleet makes it.
  std::shared_ptr<const ReplicaSet> snapshot() {
    std::vector<ReplicaView> views;
    for (const auto& [address, link] : world_.links) {
      if (link != nullptr) views.push_back(link->view(world_.now));
    }
    choice_.settle(views);
    auto set = std::make_shared<ReplicaSet>();
    for (ReplicaView& view : views) {
      if (!choice_.is_superfluous(view)) set->replicas.push_back(std::move(view));
    }
    return set;
  }

  // As the fleet does with links to a replica that is reached already.
  void close_superfluous() {
    for (auto& [address, link] : world_.links) {
      if (link == nullptr) {
        if (!choice_.reaches(closed_for_[address])) open(address, replica_at(address));
        continue;
      }
      const ReplicaView view = link->view(world_.now);
      if (!is_live(view) || !choice_.is_superfluous(view)) continue;
      closed_for_[address] = view.model->hello.replica_id();
      const auto closed = std::exchange(link, nullptr);
      closed->stop();
      ++num_duplicates_;
    }
  }

  // Of the address and of its duplicate.
  SimulatedReplica& replica_at(const std::string& address) {
    return *replicas_.at(address.substr(0, 1));
  }

  void add_call() {
    GenerateSpec spec;
    spec.model = *make_model_info(hello_, nullptr);
    spec.choices.resize(1 + dice_() % 3);
    spec.prompt.assign(1 + dice_() % 30, 7 + static_cast<uint32_t>(dice_() % 100));
    spec.max_new_tokens = static_cast<uint32_t>(1 + dice_() % 60);
    spec.sampling.set_seed(2 + dice_() % 1000);
    calls_.push_back(std::make_shared<SimulatedCall>(world_, std::move(spec)));
    calls_.back()->begin();
  }

  // 1 where it was a crash.
  int inject_fault() {
    auto one = world_.links.begin();
    std::advance(one, static_cast<long>(dice_() % world_.links.size()));
    const auto& [address, link] = *one;
    SimulatedReplica& replica = replica_at(address);
    switch (dice_() % 7) {
      case 0:
      case 1:
        replica.crash(world_.now);
        return 1;
      case 2:
        if (link == nullptr) return 0;
        one_in(2) ? link->cut() : link->cut_one();
        return 0;
      case 3: {
        // One replica of each kind may hang for good.
        const bool for_good = (address[0] == 'b' || address[0] == 'd') && one_in(3);
        const int stall_ms = for_good ? 1'000'000 : static_cast<int>(dice_() % 6000);
        replica.stall(world_.now + absl::Milliseconds(stall_ms));
        return 0;
      }
      case 4: {
        const bool draining = one_in(2);
        replica.set_draining(draining, draining && one_in(2));
        return 0;
      }
      case 5: {
        // A second address leads to the replica.
        const std::string again = address.substr(0, 1) + "+";
        if (!world_.links.contains(again)) open(again, replica);
        return 0;
      }
      default:
        if (!calls_.empty() && one_in(3)) calls_[dice_() % calls_.size()]->hang_up();
        return 0;
    }
  }

  void step() {
    for (auto& [name, replica] : replicas_) replica->tick(world_.now);
    snapshot();
    close_superfluous();
    for (auto& [address, link] : world_.links) {
      if (link != nullptr) link->tick(world_.now);
    }
    // As the fleet does: where an equal replica is ready.
    const auto set = snapshot();
    for (const ReplicaView& from : set->replicas) {
      if (!from.load.moving()) continue;
      for (const ReplicaView& to : set->replicas) {
        if (to.state == ReplicaState::kReady && to.available_credit() > 0 &&
            to.model->hello.fingerprint() == from.model->hello.fingerprint()) {
          world_.links.at(from.address)->move_streams();
        }
      }
    }
    world_.queue->dispatch();
    world_.queue->tick(world_.now);
    for (size_t i = 0; i < calls_.size(); ++i) {
      // Some clients read slowly, so that their sequences pause.
      if (i % 4 != 0 || one_in(100)) calls_[i]->read(1000);
    }
  }

  bool all_ended() const {
    for (const auto& call : calls_) {
      if (!call->ended()) return false;
    }
    return true;
  }

  bool check(Outcome& outcome, bool at_end) {
    for (const auto& [name, replica] : replicas_) {
      outcome.error = replica->complaint(at_end, world_.now);
      if (!outcome.error.empty()) return false;
    }
    return true;
  }

  const absl::Time begin_ = absl::FromUnixSeconds(1000);
  Dice dice_;
  internal::v1::Hello hello_;
  std::unique_ptr<const RoutingPolicy> policy_;
  std::map<std::string, std::unique_ptr<SimulatedReplica>> replicas_;  // by the first address
  std::vector<std::shared_ptr<SimulatedLink>> links_;                  // all that there ever were
  std::map<std::string, std::string> closed_for_;                      // replica id by address
  LinkChoice choice_;
  int num_duplicates_ = 0;
  std::vector<std::shared_ptr<SimulatedCall>> calls_;
  World world_;
};

}  // namespace

Outcome simulate(uint64_t seed, Defect defect) { return Simulation(seed, defect).run(); }

}  // namespace lckv::fleet_simulation
