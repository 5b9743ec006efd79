#include "router/fleet/link_state.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {

using internal::v1::RouterFrame;

LinkState::LinkState(const LinkTimes& times, uint64_t seed)
    : times_(times),
      backoff_(times.backoff_min),
      jitter_(static_cast<std::minstd_rand::result_type>(seed)) {}

LinkState::Turn LinkState::tick(absl::Time now) {
  Turn turn;
  if (stopped_) return turn;
  for (const Role role : {kCurrent, kNext, kOld}) {
    if (live_[role] == nullptr) continue;
    const SessionState& session = live_[role]->state;
    turn.given_up = is_lost(*live_[role], now);
    const bool is_over = role == kOld && (session.empty() || age(*live_[role], now) >= 1);
    if (!turn.given_up && !is_over) continue;
    turn.silence = session.silence(now);
    turn.standstill = session.standstill(now);
    turn.closing = live_[role]->number;
    turn.orphans = drop(role, now);
    break;
  }
  if (now - beat_time_ >= times_.beat_interval) {
    beat_time_ = now;
    for (const LivePtr& live : live_) {
      if (live == nullptr) continue;
      turn.beats.push_back({.session = live->number, .frame = {}});
      turn.beats.back().frame.mutable_beat();
    }
  }
  if (const auto role = role_to_open(now)) {
    turn.opening = ++last_session_;
    live_[*role] = std::make_unique<Live>(
        Live{.number = turn.opening, .state = SessionState(now), .opened = now});
  }
  return turn;
}

std::optional<LinkState::Role> LinkState::role_to_open(absl::Time now) const {
  if (now < connect_time_) return std::nullopt;
  const LivePtr& current = live_[kCurrent];
  if (current == nullptr) return kCurrent;
  const bool is_old = current->state.greeted() && age(*current, now) >= 0.5;
  if (!is_old || live_[kNext] != nullptr || live_[kOld] != nullptr) return std::nullopt;
  return kNext;
}

double LinkState::age(const Live& live, absl::Time now) const {
  if (times_.max_session_age == absl::ZeroDuration()) return 0;
  return absl::FDivDuration(now - live.opened, times_.max_session_age);
}

bool LinkState::is_lost(const Live& live, absl::Time now) const {
  if (!live.state.greeted()) return false;  // loading takes its time; a dead peer fails by itself
  return live.state.silence(now) > std::max(times_.lost_after, 3 * live.state.long_gap()) ||
         live.state.standstill(now) > times_.standstill_after;
}

std::optional<SessionState::Received> LinkState::on_frame(uint64_t session,
                                                          const internal::v1::WorkerFrame& frame,
                                                          absl::Time now) {
  const LivePtr* live = find(session);
  if (live == nullptr) return std::nullopt;
  return (*live)->state.on_frame(frame, now);
}

void LinkState::greet(uint64_t session, std::shared_ptr<const ModelInfo> model, absl::Time now) {
  const LivePtr* live = find(session);
  if (live == nullptr) return;
  model_ = std::move(model);
  backoff_ = times_.backoff_min;
  (*live)->state.greet(now);
  if (live != &live_[kNext]) return;
  live_[kOld] = std::exchange(live_[kCurrent], std::exchange(live_[kNext], nullptr));
}

LinkState::Ending LinkState::on_end(uint64_t session, absl::Time now) {
  const LivePtr* live = find(session);
  if (live == nullptr) return {};
  const auto role = static_cast<Role>(live - live_.data());
  const SessionState& state = (*live)->state;
  Ending ending{.orphans = {},
                .kind = state.load().draining() ? LossKind::kMoved : LossKind::kDied,
                .was_ready = role == kCurrent && state.greeted()};
  ending.orphans = drop(role, now);
  return ending;
}

// Sets the time of the next attempt where one has failed or no session is left, doubling the
// delay, by half at random.
std::vector<LinkState::Route> LinkState::drop(Role role, absl::Time now) {
  std::vector<Route> orphans;
  const LivePtr dropped = std::exchange(live_[role], nullptr);
  if (dropped == nullptr) return orphans;
  for (auto& [handle, route] : dropped->state.take_all()) orphans.push_back(std::move(route));
  if (role == kOld) return orphans;
  if (role == kCurrent) {
    live_[kCurrent] = std::exchange(live_[kNext], nullptr);
    if (live_[kCurrent] != nullptr) return orphans;
  }
  const double factor = std::uniform_real_distribution<double>(0.5, 1.0)(jitter_);
  connect_time_ = now + backoff_ * factor;
  backoff_ = std::min(backoff_ * 2, times_.backoff_max);
  return orphans;
}

std::optional<uint64_t> LinkState::submit(const std::shared_ptr<SequenceSink>& sink,
                                          const ModelInfo* model,
                                          std::vector<internal::v1::Submit> submits, absl::Time now,
                                          std::vector<Outgoing>& out) {
  LCKV_CHECK(!submits.empty());
  const LivePtr& live = live_[kCurrent];
  const uint64_t first = next_handle_;
  if (live == nullptr || model_.get() != model || !live->state.submit(sink, first, submits, now)) {
    return std::nullopt;
  }
  next_handle_ += submits.size();
  for (internal::v1::Submit& submit : submits) {
    RouterFrame& frame = out.emplace_back(Outgoing{.session = live->number, .frame = {}}).frame;
    *frame.mutable_submit() = std::move(submit);
  }
  return first;
}

void LinkState::cancel(uint64_t handle, std::vector<Outgoing>& out) {
  for (const LivePtr& live : live_) {
    if (live == nullptr || !live->state.take(handle)) continue;
    RouterFrame& frame = out.emplace_back(Outgoing{.session = live->number, .frame = {}}).frame;
    frame.mutable_cancel()->set_handle(handle);
  }
}

void LinkState::set_paused(uint64_t handle, bool paused, absl::Time now,
                           std::vector<Outgoing>& out) {
  for (const LivePtr& live : live_) {
    if (live == nullptr || !live->state.set_paused(handle, paused, now)) continue;
    RouterFrame& frame = out.emplace_back(Outgoing{.session = live->number, .frame = {}}).frame;
    if (paused) {
      frame.mutable_pause()->set_handle(handle);
    } else {
      frame.mutable_continue_()->set_handle(handle);
    }
  }
}

std::vector<LinkState::Route> LinkState::take_streams(std::vector<Outgoing>& out) {
  std::vector<Route> taken;
  for (const LivePtr& live : live_) {
    if (live == nullptr) continue;
    for (auto& [handle, route] : live->state.take_all()) {
      RouterFrame& frame = out.emplace_back(Outgoing{.session = live->number, .frame = {}}).frame;
      frame.mutable_cancel()->set_handle(handle);
      taken.push_back(std::move(route));
    }
  }
  return taken;
}

std::vector<LinkState::Route> LinkState::stop() {
  stopped_ = true;
  std::vector<Route> orphans;
  for (LivePtr& live : live_) {
    if (live == nullptr) continue;
    for (auto& [handle, route] : live->state.take_all()) orphans.push_back(std::move(route));
    live = nullptr;
  }
  return orphans;
}

uint64_t LinkState::current() const {
  return live_[kCurrent] == nullptr ? 0 : live_[kCurrent]->number;
}

bool LinkState::greeted() const {
  return live_[kCurrent] != nullptr && live_[kCurrent]->state.greeted();
}

ReplicaState LinkState::state(absl::Time now, bool connected) const {
  const LivePtr& live = live_[kCurrent];
  const ReplicaState away = model_ ? ReplicaState::kLost : ReplicaState::kConnecting;
  if (live == nullptr || stopped_) return away;
  const SessionState& session = live->state;
  if (!session.greeted()) return connected ? ReplicaState::kLoading : away;
  if (session.silence(now) > std::max(times_.unresponsive_after, 2 * session.long_gap()) ||
      session.standstill(now) > times_.standstill_after / 2) {
    return ReplicaState::kUnresponsive;
  }
  return session.load().draining() ? ReplicaState::kDraining : ReplicaState::kReady;
}

void LinkState::describe(ReplicaView& view) const {
  view.model = model_;
  const LivePtr& live = live_[kCurrent];
  if (live == nullptr) return;
  view.load = live->state.load();
  view.num_in_flight = live->state.num_in_flight();
  view.step_time = live->state.step_time();
}

const LinkState::LivePtr* LinkState::find(uint64_t session) const {
  const auto it = std::find_if(live_.begin(), live_.end(), [session](const LivePtr& live) {
    return live != nullptr && live->number == session;
  });
  return it == live_.end() ? nullptr : &*it;
}

}  // namespace lckv
