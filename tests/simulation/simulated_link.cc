#include "tests/simulation/simulated_link.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace lckv::fleet_simulation {
namespace {

using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;

constexpr absl::Duration kLostAfter = absl::Seconds(3);
constexpr int kMaxDelayMs = 30;

}  // namespace

SimulatedLink::SimulatedLink(std::string address, std::string fingerprint, Defect defect,
                             Dice& dice)
    : address_(std::move(address)),
      fingerprint_(std::move(fingerprint)),
      defect_(defect),
      dice_(dice),
      restart_time_(absl::InfinitePast()) {}

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
  if (leader_ != nullptr && now >= stalled_until_) {
    if (!session_ && to_router_.empty() && now >= connect_time_) {
      leader_->forget_session();
      session_.emplace(now);
      open_ = true;
      broken_ = false;
      to_leader_.clear();
      to_router_.emplace_back(now, leader_->hello());
    }
    deliver_to_leader(now);
    std::vector<WorkerFrame> frames;
    leader_->turn(now, frames);
    for (WorkerFrame& frame : frames) {
      const absl::Time last = to_router_.empty() ? now : to_router_.back().first;
      if (open_) to_router_.emplace_back(arrival(now, last), std::move(frame));
    }
  }
  deliver_to_router(now);
  if (session_ && session_->silence(now) > kLostAfter && defect_ != Defect::kUnwatchedSilence) {
    broken_ = true;
    open_ = false;
    with_late_frame([&] { lose_session(now); });
    to_router_.clear();
  }
}

// A frame whose delivery has begun when its sequences are taken away is told after that.
void SimulatedLink::with_late_frame(const std::function<void()>& take_away) {
  if (to_router_.empty() || to_router_.front().second.has_hello()) {
    take_away();
    return;
  }
  const WorkerFrame frame = std::move(to_router_.front().second);
  to_router_.pop_front();
  const SessionState::Received late = session_->on_frame(frame, now_);
  take_away();
  tell(late, frame);
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

void SimulatedLink::deliver_to_leader(absl::Time now) {
  std::vector<WorkerFrame> answers;
  while (!to_leader_.empty() && to_leader_.front().first <= now) {
    const RouterFrame frame = std::move(to_leader_.front().second);
    to_leader_.pop_front();
    if (open_) leader_->receive(frame, now, answers);
  }
  for (WorkerFrame& answer : answers) {
    const absl::Time last = to_router_.empty() ? now : to_router_.back().first;
    to_router_.emplace_back(arrival(now, last), std::move(answer));
  }
}

void SimulatedLink::deliver_to_router(absl::Time now) {
  while (!to_router_.empty() && to_router_.front().first <= now) {
    WorkerFrame frame = std::move(to_router_.front().second);
    to_router_.pop_front();
    if (!session_) continue;
    if (defect_ == Defect::kDoubleCredit) {
      frame.mutable_load()->set_credit(frame.load().credit() * 2);
    }
    if (frame.has_hello()) {
      model_ = *make_model_info(frame.hello(), model_.get());
      session_->greet(now);
    }
    tell(session_->on_frame(frame, now), frame);
  }
  if (session_ && broken_ && to_router_.empty()) lose_session(now);
}

void SimulatedLink::lose_session(absl::Time now) {
  const LossKind kind = session_->load().draining() ? LossKind::kMoved : LossKind::kDied;
  auto orphans = session_->take_all();
  session_.reset();
  connect_time_ = now + absl::Milliseconds(100 + static_cast<int>(dice_() % 400));
  if (leader_ != nullptr) leader_->forget_session();
  if (defect_ == Defect::kForgottenOrphan && !orphans.empty()) orphans.pop_back();
  for (const auto& [handle, route] : orphans) {
    route.sink->on_lost(route.attempt, kind, absl::UnavailableError("lost"));
  }
}

void SimulatedLink::cut() {
  if (!session_ || broken_) return;
  broken_ = true;
  open_ = false;
  // Some of what was on the wire still arrives.
  to_router_.resize(to_router_.empty() ? 0 : dice_() % (to_router_.size() + 1));
  to_leader_.clear();
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

void SimulatedLink::send(RouterFrame frame, absl::Time now) {
  if (!open_) return;
  const absl::Time last = to_leader_.empty() ? now : to_leader_.back().first;
  to_leader_.emplace_back(arrival(now, last), std::move(frame));
}

bool SimulatedLink::submit(const std::shared_ptr<SequenceSink>& sink,
                           std::vector<internal::v1::Submit> submits,
                           std::vector<uint64_t>& handles, absl::Time now) {
  if (!session_) return false;
  if (!session_->submit(sink, next_handle_, submits, now)) return false;
  for (internal::v1::Submit& submit : submits) {
    handles.push_back(next_handle_++);
    RouterFrame frame;
    *frame.mutable_submit() = std::move(submit);
    send(std::move(frame), now);
  }
  return true;
}

void SimulatedLink::cancel(uint64_t handle) {
  if (!session_ || !session_->take(handle) || defect_ == Defect::kLostCancel) return;
  RouterFrame frame;
  frame.mutable_cancel()->set_handle(handle);
  send(std::move(frame), now_);
}

void SimulatedLink::set_paused(uint64_t handle, bool paused, absl::Time now) {
  if (!session_ || !session_->set_paused(handle, paused, now)) return;
  RouterFrame frame;
  if (paused) {
    frame.mutable_pause()->set_handle(handle);
  } else {
    frame.mutable_continue_()->set_handle(handle);
  }
  if (paused || defect_ != Defect::kLostContinue) send(std::move(frame), now);
}

void SimulatedLink::move_streams() {
  if (!session_) return;
  with_late_frame([this] {
    for (auto& [handle, route] : session_->take_all()) {
      RouterFrame frame;
      frame.mutable_cancel()->set_handle(handle);
      if (defect_ != Defect::kLostCancel) send(std::move(frame), now_);
      route.sink->on_lost(route.attempt, LossKind::kMoved, absl::UnavailableError("drains"));
    }
  });
}

ReplicaView SimulatedLink::view(absl::Time now) const {
  ReplicaView view{.address = address_, .state = ReplicaState::kLost, .model = model_};
  if (!session_ || !session_->greeted()) return view;
  view.load = session_->load();
  view.num_in_flight = session_->num_in_flight();
  view.state = view.load.draining()                        ? ReplicaState::kDraining
               : session_->silence(now) > absl::Seconds(1) ? ReplicaState::kUnresponsive
                                                           : ReplicaState::kReady;
  return view;
}

std::string SimulatedLink::complaint(bool at_end) const {
  if (leader_ == nullptr) return "";
  if (leader_->num_unpromised() > 0)
    return absl::StrCat(address_, " was given more than it had promised room for");
  // One that hangs can free nothing.
  return at_end && now_ >= stalled_until_ ? leader_->leak() : "";
}

}  // namespace lckv::fleet_simulation
