#include "tests/simulation/simulated_link.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
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

SimulatedLink::SimulatedLink(std::string address, std::string fingerprint, Defect defect,
                             Dice& dice)
    : address_(std::move(address)),
      fingerprint_(std::move(fingerprint)),
      defect_(defect),
      dice_(dice),
      restart_time_(absl::InfinitePast()),
      state_(link_times(defect, dice), dice()) {}

// Later than what was sent before: a session's frames stay in order.
absl::Time SimulatedLink::arrival(absl::Time now, absl::Time last) {
  return std::max(last, now + absl::Milliseconds(static_cast<int>(dice_() % kMaxDelayMs)));
}

void SimulatedLink::tick(absl::Time now) {
  now_ = now;
  if (leader_ == nullptr && now >= restart_time_) {
    leader_ =
        std::make_unique<SimulatedLeader>(absl::StrCat(address_, "-", ++num_lives_), fingerprint_);
  }
  if (answers(now)) run_leader(now);
  run_router(now);
}

void SimulatedLink::run_leader(absl::Time now) {
  std::vector<SimulatedLeader::Outgoing> frames;
  for (auto& [session, connection] : connections_) {
    if (connection.broken) continue;
    if (!leader_->knows(session)) frames.push_back({session, leader_->open(session)});
    while (!connection.to_leader.empty() && connection.to_leader.front().first <= now) {
      const RouterFrame frame = std::move(connection.to_leader.front().second);
      connection.to_leader.pop_front();
      leader_->receive(session, frame, now, frames);
    }
  }
  leader_->turn(now, frames);
  for (SimulatedLeader::Outgoing& outgoing : frames) send(std::move(outgoing), now);
}

void SimulatedLink::run_router(absl::Time now) {
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
void SimulatedLink::connect(uint64_t session) { connections_[session].broken = leader_ == nullptr; }

void SimulatedLink::disconnect(uint64_t session) {
  connections_.erase(session);
  if (leader_ != nullptr && leader_->knows(session)) leader_->forget(session);
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
  Connection& connection = connections_.at(outgoing.session);
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

void SimulatedLink::cut() {
  for (auto& [session, connection] : connections_) {
    if (connection.broken) continue;
    connection.broken = true;
    // Some of what was on the wire still arrives.
    const size_t size = connection.to_router.size();
    connection.to_router.resize(size == 0 ? 0 : dice_() % (size + 1));
    connection.to_leader.clear();
  }
}

void SimulatedLink::crash(absl::Time now) {
  if (leader_ == nullptr) return;
  cut();
  leader_.reset();
  stalled_until_ = absl::InfinitePast();
  restart_time_ = now + absl::Milliseconds(static_cast<int>(dice_() % 3000));
}

void SimulatedLink::set_draining(bool draining, bool moving) {
  if (leader_ != nullptr) leader_->set_draining(draining, moving);
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

ReplicaView SimulatedLink::view(absl::Time now) const {
  ReplicaView view{.address = address_, .state = state_.state(now, /*connected=*/false)};
  state_.describe(view);
  return view;
}

std::string SimulatedLink::complaint(bool at_end) const {
  if (leader_ == nullptr) return "";
  if (leader_->num_unpromised() > 0) {
    return absl::StrCat(address_, " was given more than it had promised room for");
  }
  // One that hangs can free nothing.
  return at_end && now_ >= stalled_until_ ? leader_->leak() : "";
}

}  // namespace lckv::fleet_simulation
