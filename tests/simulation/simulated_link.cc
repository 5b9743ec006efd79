#include "tests/simulation/simulated_link.h"

#include <algorithm>
#include <functional>
#include <iterator>

#include "kernels/check.h"

namespace lckv::fleet_simulation {
namespace {

using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;

constexpr int kMaxDelayMs = 30;

// As shipped, but that the sessions of some links age within the load's seconds.
LinkTimes link_times(Defect defect, Dice& dice) {
  LinkTimes times;
  if (dice() % 2 == 0) times.max_session_age = absl::Milliseconds(1500);
  if (defect == Defect::kUnwatchedSilence) {
    times.lost_after = times.standstill_after = absl::InfiniteDuration();
  }
  return times;
}

}  // namespace

SimulatedLink::SimulatedLink(std::string address, SimulatedReplica& replica, size_t number,
                             Defect defect, Dice& dice)
    : address_(std::move(address)),
      replica_(replica),
      number_(number),
      defect_(defect),
      dice_(dice),
      state_(link_times(defect, dice), dice()) {}

// Later than what was sent before: a session's frames stay in order.
absl::Time SimulatedLink::arrival(absl::Time now, absl::Time last) {
  return std::max(last, now + absl::Milliseconds(static_cast<int>(dice_() % kMaxDelayMs)));
}

void SimulatedLink::hand_over(SimulatedLeader& leader, absl::Time now,
                              std::vector<SimulatedLeader::Outgoing>& answers) {
  for (auto& [session, connection] : connections_) {
    if (connection.broken) continue;
    const uint64_t known_as = at_leader(session);
    if (!leader.knows(known_as)) answers.push_back({known_as, leader.open(known_as)});
    while (!connection.to_leader.empty() && connection.to_leader.front().first <= now) {
      const RouterFrame frame = std::move(connection.to_leader.front().second);
      connection.to_leader.pop_front();
      leader.receive(known_as, frame, now, answers);
    }
  }
}

void SimulatedLink::tick(absl::Time now) {
  now_ = now;
  std::vector<uint64_t> sessions;
  for (const auto& [session, connection] : connections_) sessions.push_back(session);
  for (const uint64_t session : sessions) {
    auto& wire = connections_.at(session).to_router;
    while (!wire.empty() && wire.front().first <= now) {
      WorkerFrame frame = std::move(wire.front().second);
      wire.pop_front();
      receive(session, std::move(frame), now);
    }
    if (!connections_.at(session).broken || !wire.empty()) continue;
    LinkState::Ending ending = state_.on_end(session, now);
    disconnect(session);
    lose(std::move(ending.orphans), ending.kind);
  }
  LinkState::Turn turn = state_.tick(now);
  if (turn.closing != 0) disconnect(turn.closing);
  send(std::move(turn.beats));
  lose(std::move(turn.orphans), LossKind::kDied);
  if (turn.opening != 0) connect(turn.opening);
}

// What is dead refuses; what hangs answers later.
void SimulatedLink::connect(uint64_t session) {
  connections_[session].broken = replica_.leader() == nullptr;
}

void SimulatedLink::disconnect(uint64_t session) {
  connections_.erase(session);
  SimulatedLeader* leader = replica_.leader();
  if (leader != nullptr && leader->knows(at_leader(session))) leader->forget(at_leader(session));
}

void SimulatedLink::send(std::vector<LinkState::Outgoing> frames) {
  for (LinkState::Outgoing& outgoing : frames) {
    if (defect_ == Defect::kLostCancel && outgoing.frame.has_cancel()) continue;
    if (defect_ == Defect::kLostContinue && outgoing.frame.has_continue_()) continue;
    Connection& connection = connections_.at(outgoing.session);
    if (connection.broken) continue;
    auto& wire = connection.to_leader;
    const absl::Time last = wire.empty() ? now_ : wire.back().first;
    wire.emplace_back(arrival(now_, last), std::move(outgoing.frame));
  }
}

void SimulatedLink::send(SimulatedLeader::Outgoing outgoing, absl::Time now) {
  Connection& connection = connections_.at(outgoing.session - at_leader(0));
  if (connection.broken) return;
  auto& wire = connection.to_router;
  const absl::Time last = wire.empty() ? now : wire.back().first;
  wire.emplace_back(arrival(now, last), std::move(outgoing.frame));
}

void SimulatedLink::receive(uint64_t session, WorkerFrame frame, absl::Time now) {
  const uint64_t current = state_.current();
  if (defect_ == Defect::kDeafPredecessor && session < current) return;
  if (defect_ == Defect::kDoubleCredit) {
    frame.mutable_load()->set_credit(frame.load().credit() * 2);
  }
  const auto received = state_.on_frame(session, frame, now);
  LCKV_CHECK(received.has_value());
  if (frame.has_hello()) {
    state_.greet(session, *make_model_info(frame.hello(), state_.model().get()), now);
    num_followed_ += current != 0 && current != state_.current() ? 1 : 0;
  }
  tell(*received, frame);
}

// A frame whose delivery has begun when its sequences are taken away is told after that.
void SimulatedLink::with_late_frame(uint64_t session, const std::function<void()>& take_away) {
  const auto connection = connections_.find(session);
  if (connection == connections_.end() || connection->second.to_router.empty() ||
      connection->second.to_router.front().second.has_hello()) {
    take_away();
    return;
  }
  const WorkerFrame frame = std::move(connection->second.to_router.front().second);
  connection->second.to_router.pop_front();
  const auto late = state_.on_frame(session, frame, now_);
  take_away();
  tell(*late, frame);
}

void SimulatedLink::tell(const SessionState::Received& received, const WorkerFrame& frame) {
  for (const auto& route : received.seated) route.sink->on_seated(route.attempt);
  for (const auto& [route, update] : received.deliveries) {
    route.sink->on_update(route.attempt, update);
  }
  if (received.refused) {
    received.refused->sink->on_refused(received.refused->attempt, frame.refused());
  }
}

void SimulatedLink::lose(std::vector<LinkState::Route> orphans, LossKind kind) {
  if (defect_ == Defect::kForgottenOrphan && !orphans.empty()) orphans.pop_back();
  for (const LinkState::Route& route : orphans) {
    route.sink->on_lost(route.attempt, kind, absl::UnavailableError("lost"));
  }
}

void SimulatedLink::cut(Connection& connection) {
  if (connection.broken) return;
  connection.broken = true;
  // Some of what was on the wire still arrives.
  const size_t size = connection.to_router.size();
  connection.to_router.resize(size == 0 ? 0 : dice_() % (size + 1));
  connection.to_leader.clear();
}

void SimulatedLink::cut() {
  for (auto& [session, connection] : connections_) cut(connection);
}

void SimulatedLink::cut_one() {
  if (connections_.empty()) return;
  auto one = connections_.begin();
  std::advance(one, static_cast<long>(dice_() % connections_.size()));
  cut(one->second);
}

bool SimulatedLink::submit(const std::shared_ptr<SequenceSink>& sink,
                           std::vector<internal::v1::Submit> submits,
                           std::vector<uint64_t>& handles, absl::Time now) {
  const size_t count = submits.size();
  std::vector<LinkState::Outgoing> frames;
  const auto first = state_.submit(sink, state_.model().get(), std::move(submits), now, frames);
  if (!first) return false;
  for (size_t i = 0; i < count; ++i) handles.push_back(*first + i);
  send(std::move(frames));
  return true;
}

void SimulatedLink::cancel(uint64_t handle) {
  std::vector<LinkState::Outgoing> frames;
  state_.cancel(handle, frames);
  send(std::move(frames));
}

void SimulatedLink::set_paused(uint64_t handle, bool paused, absl::Time now) {
  std::vector<LinkState::Outgoing> frames;
  state_.set_paused(handle, paused, now, frames);
  send(std::move(frames));
}

void SimulatedLink::move_streams() {
  with_late_frame(state_.current(), [this] {
    std::vector<LinkState::Outgoing> frames;
    std::vector<LinkState::Route> moved = state_.take_streams(frames);
    send(std::move(frames));
    lose(std::move(moved), LossKind::kMoved);
  });
}

size_t SimulatedLink::stop() {
  std::vector<LinkState::Route> orphans;
  with_late_frame(state_.current(), [&] { orphans = state_.stop(); });
  while (!connections_.empty()) disconnect(connections_.begin()->first);
  const size_t count = orphans.size();
  if (defect_ != Defect::kForgottenDuplicate) lose(std::move(orphans), LossKind::kMoved);
  return count;
}

ReplicaView SimulatedLink::view(absl::Time now) const {
  ReplicaView view{.address = address_, .state = state_.state(now, /*connected=*/false)};
  state_.describe(view);
  return view;
}

}  // namespace lckv::fleet_simulation
