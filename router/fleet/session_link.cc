#include "router/fleet/session_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "kernels/check.h"
#include "rpc/server_options.h"
#include "rpc/status_mapping.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

std::shared_ptr<grpc::Channel> open_channel(const LinkOptions& options) {
  grpc::ChannelArguments arguments = internal_channel_arguments();
  if (options.credentials == nullptr) {
    return grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  return grpc::CreateCustomChannel(options.address, options.credentials, arguments);
}

}  // namespace

using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;

SessionLink::SessionLink(LinkOptions options, LinkHandlers handlers)
    : options_(std::move(options)),
      handlers_(std::move(handlers)),
      backoff_(options_.backoff_min),
      jitter_(std::random_device{}()) {}

void SessionLink::tick(absl::Time now) {
  std::vector<Route> orphans;
  std::vector<std::shared_ptr<Session>> beating;
  std::vector<std::shared_ptr<Session>> ended;
  std::vector<std::shared_ptr<grpc::Channel>> unused;  // goes without the lock
  std::optional<Role> opening;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    const auto used = std::partition(retired_.begin(), retired_.end(),
                                     [](const auto& channel) { return channel.use_count() > 1; });
    unused.assign(std::move_iterator(used), std::move_iterator(retired_.end()));
    retired_.erase(used, retired_.end());
    for (const Role role : {kCurrent, kNext, kOld}) {
      const LivePtr live = live_[role];
      if (live == nullptr) continue;
      const bool lost = is_lost(*live, now);
      if (!lost && (role != kOld || !live->state.empty())) continue;
      if (lost) {
        spdlog::warn("replica {} is silent for {}, its steps stand still for {}: given up",
                     options_.address, absl::FormatDuration(live->state.silence(now)),
                     absl::FormatDuration(live->state.standstill(now)));
      }
      ended.push_back(live->session);
      drop(role, now, orphans);
      break;
    }
    const LivePtr& current = live_[kCurrent];
    if (current == nullptr) {
      if (now >= connect_time_) opening = kCurrent;
    } else if (options_.max_session_age > absl::ZeroDuration() && current->state.greeted() &&
               now - current->opened >= options_.max_session_age && live_[kNext] == nullptr &&
               live_[kOld] == nullptr) {
      opening = kNext;
    }
    if (now - beat_time_ >= options_.beat_interval) {
      beat_time_ = now;
      for (const LivePtr& live : live_) {
        if (live == nullptr) continue;
        RouterFrame beat;
        beat.mutable_beat();
        send(*live, std::move(beat));
        beating.push_back(live->session);
      }
    }
  }
  if (opening) open(*opening, now);
  for (const auto& session : beating) session->flush();
  for (const auto& session : ended) session->cancel();
  end_routes(orphans, LossKind::kDied, absl::UnavailableError("the replica stopped answering"));
  // Time alone turns a silent replica unresponsive.
  if (!beating.empty() || !ended.empty()) handlers_.on_change();
}

bool SessionLink::is_lost(const Live& live, absl::Time now) const {
  if (!live.state.greeted()) return false;  // loading takes its time; a dead peer fails by itself
  return live.state.silence(now) > std::max(options_.lost_after, 3 * live.state.long_step()) ||
         live.state.standstill(now) > options_.standstill_after;
}

void SessionLink::open(Role role, absl::Time now) {
  auto self = shared_from_this();
  auto live = std::make_shared<Live>(Live{.state = SessionState(now), .opened = now});
  live->channel = open_channel(options_);
  live->stub = internal::v1::Engine::NewStub(live->channel);
  live->session = std::make_shared<Session>();
  // The handlers tell their own session from a later one by its address, which stays taken until
  // on_end.
  const Session* key = live->session.get();
  live->session->set_handlers(
      {.on_frame = [self, key](const WorkerFrame& f) { self->on_frame(key, f); },
       .on_end = [self, key](const grpc::Status& s) { self->on_end(key, s); }});
  {
    std::lock_guard lock(mutex_);
    if (stopped_ || live_[role] != nullptr) return;
    live_[role] = live;
    ++num_open_;
    RouterFrame frame;
    frame.mutable_open()->set_router_id(options_.router_id);
    send(*live, std::move(frame));
  }
  live->session->start(*live->stub);
  live->session->flush();
}

void SessionLink::on_frame(const Session* session, const WorkerFrame& frame) {
  handlers_.on_frame_moved(true);
  const absl::Time now = absl::Now();
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model;
  if (frame.has_hello()) model = handlers_.on_hello(frame.hello());
  SessionState::Received received;
  std::shared_ptr<Session> rejected;
  {
    std::lock_guard lock(mutex_);
    LivePtr* live = find(session);
    if (live == nullptr) return;
    received = (*live)->state.on_frame(frame, now);
    if (frame.has_hello()) {
      if (model.ok()) {
        note_hello(static_cast<Role>(live - live_.data()), *model, now);
      } else {
        rejected = (*live)->session;
      }
    }
  }
  if (rejected) {
    spdlog::error("replica {} is unusable: {}", options_.address,
                  std::string(model.status().message()));
    rejected->cancel();
  } else if (frame.has_hello()) {
    spdlog::info("replica {} serves {} (id {})", options_.address, frame.hello().model(),
                 frame.hello().replica_id());
  }
  for (const Route& route : received.seated) route.sink->on_seated(route.attempt);
  for (const auto& delivery : received.deliveries) {
    delivery.route.sink->on_update(delivery.route.attempt, delivery.update);
  }
  if (received.refused) {
    received.refused->sink->on_refused(received.refused->attempt, frame.refused());
  }
  handlers_.on_change();
}

void SessionLink::note_hello(Role role, std::shared_ptr<const ModelInfo> model, absl::Time now) {
  model_ = std::move(model);
  backoff_ = options_.backoff_min;
  live_[role]->state.greet(now);
  if (role != kNext) return;
  live_[kOld] = std::exchange(live_[kCurrent], std::exchange(live_[kNext], nullptr));
}

void SessionLink::on_end(const Session* session, const grpc::Status& status) {
  std::vector<Route> orphans;
  bool was_ready = false;
  bool was_draining = false;
  {
    std::lock_guard lock(mutex_);
    if (LivePtr* live = find(session)) {
      const auto role = static_cast<Role>(live - live_.data());
      was_ready = role == kCurrent && (*live)->state.greeted();
      was_draining = (*live)->state.load().draining();
      drop(role, absl::Now(), orphans);
    }
  }
  if (was_ready) {
    spdlog::warn("replica {} is lost: {}", options_.address, status.error_message());
  }
  end_routes(orphans, was_draining ? LossKind::kMoved : LossKind::kDied,
             absl::UnavailableError("the replica was lost"));
  handlers_.on_change();
  // Last: once no session is open, what the handlers refer to may go.
  std::lock_guard lock(mutex_);
  --num_open_;
}

// Sets the time of the next attempt where no session is left, doubling the delay, by half at
// random.
void SessionLink::drop(Role role, absl::Time now, std::vector<Route>& orphans) {
  const LivePtr dropped = std::exchange(live_[role], nullptr);
  if (dropped == nullptr) return;
  for (auto& [handle, route] : dropped->state.take_all()) orphans.push_back(std::move(route));
  retired_.push_back(dropped->channel);
  if (role != kCurrent) return;
  live_[kCurrent] = std::exchange(live_[kNext], nullptr);
  if (live_[kCurrent] != nullptr) return;
  const double factor = std::uniform_real_distribution<double>(0.5, 1.0)(jitter_);
  connect_time_ = now + backoff_ * factor;
  backoff_ = std::min(backoff_ * 2, options_.backoff_max);
}

void SessionLink::end_routes(const std::vector<Route>& routes, LossKind kind,
                             const absl::Status& why) {
  for (const Route& route : routes) route.sink->on_lost(route.attempt, kind, why);
}

ReplicaState SessionLink::state(absl::Time now) {
  const LivePtr& live = live_[kCurrent];
  if (live == nullptr || stopped_) {
    return model_ ? ReplicaState::kLost : ReplicaState::kConnecting;
  }
  const SessionState& session = live->state;
  if (!session.greeted()) {
    if (live->channel->GetState(false) == GRPC_CHANNEL_READY) return ReplicaState::kLoading;
    return model_ ? ReplicaState::kLost : ReplicaState::kConnecting;
  }
  if (session.silence(now) > std::max(options_.unresponsive_after, 2 * session.long_step()) ||
      session.standstill(now) > options_.standstill_after / 2) {
    return ReplicaState::kUnresponsive;
  }
  return session.load().draining() ? ReplicaState::kDraining : ReplicaState::kReady;
}

ReplicaView SessionLink::view() {
  std::lock_guard lock(mutex_);
  ReplicaView view{.address = options_.address,
                   .state = state(absl::Now()),
                   .model = model_,
                   .link = shared_from_this()};
  if (const LivePtr& live = live_[kCurrent]) {
    view.load = live->state.load();
    view.num_in_flight = live->state.num_in_flight();
    view.step_time = live->state.step_time();
  }
  return view;
}

void SessionLink::send(Live& live, RouterFrame frame) {
  live.session->enqueue(std::move(frame));
  handlers_.on_frame_moved(false);
}

SessionLink::LivePtr* SessionLink::find(const Session* session) {
  const auto it = std::find_if(live_.begin(), live_.end(), [session](const LivePtr& live) {
    return live != nullptr && live->session.get() == session;
  });
  return it == live_.end() ? nullptr : &*it;
}

std::optional<uint64_t> SessionLink::submit(const std::shared_ptr<SequenceSink>& sink,
                                            const ModelInfo* model,
                                            std::vector<internal::v1::Submit> submits) {
  LCKV_CHECK(!submits.empty());
  std::lock_guard lock(mutex_);
  const LivePtr& live = live_[kCurrent];
  const uint64_t first = next_handle_;
  if (live == nullptr || model_.get() != model ||
      !live->state.submit(sink, first, submits, absl::Now())) {
    return std::nullopt;
  }
  next_handle_ += submits.size();
  for (internal::v1::Submit& submit : submits) {
    RouterFrame frame;
    *frame.mutable_submit() = std::move(submit);
    send(*live, std::move(frame));
  }
  return first;
}

void SessionLink::cancel(uint64_t handle) {
  std::lock_guard lock(mutex_);
  for (const LivePtr& live : live_) {
    if (live == nullptr || !live->state.take(handle)) continue;
    RouterFrame frame;
    frame.mutable_cancel()->set_handle(handle);
    send(*live, std::move(frame));
  }
}

void SessionLink::set_paused(uint64_t handle, bool paused) {
  std::lock_guard lock(mutex_);
  for (const LivePtr& live : live_) {
    if (live == nullptr || !live->state.set_paused(handle, paused, absl::Now())) continue;
    RouterFrame frame;
    if (paused) {
      frame.mutable_pause()->set_handle(handle);
    } else {
      frame.mutable_continue_()->set_handle(handle);
    }
    send(*live, std::move(frame));
  }
}

void SessionLink::flush() {
  std::array<LivePtr, kNumRoles> live;
  {
    std::lock_guard lock(mutex_);
    live = live_;
  }
  for (const LivePtr& one : live) {
    if (one != nullptr) one->session->flush();
  }
}

void SessionLink::move_streams() {
  std::vector<Route> moved;
  {
    std::lock_guard lock(mutex_);
    for (const LivePtr& live : live_) {
      if (live == nullptr) continue;
      for (auto& [handle, route] : live->state.take_all()) {
        RouterFrame frame;
        frame.mutable_cancel()->set_handle(handle);
        send(*live, std::move(frame));
        moved.push_back(std::move(route));
      }
    }
  }
  flush();
  end_routes(moved, LossKind::kMoved, absl::UnavailableError("the replica drains"));
}

void SessionLink::drain(const internal::v1::DrainRequest& request, absl::Time deadline,
                        std::function<void(const absl::Status&, const internal::v1::Load&)> done) {
  struct Asking {
    grpc::ClientContext call;
    internal::v1::DrainRequest request;
    internal::v1::DrainResponse response;
    LivePtr live;
  };
  auto asking = std::make_shared<Asking>();
  asking->request = request;
  asking->call.set_deadline(absl::ToChronoTime(deadline));
  {
    std::lock_guard lock(mutex_);
    asking->live = live_[kCurrent];
    if (asking->live != nullptr) ++num_open_;
  }
  if (asking->live == nullptr) {
    done(absl::UnavailableError("the replica is not connected"), {});
    return;
  }
  asking->live->stub->async()->Drain(
      &asking->call, &asking->request, &asking->response,
      [self = shared_from_this(), asking, done = std::move(done)](const grpc::Status& status) {
        done(to_absl_status(status), asking->response.load());
        std::lock_guard lock(self->mutex_);
        --self->num_open_;
      });
}

void SessionLink::stop(const absl::Status& why) {
  std::vector<Route> orphans;
  std::vector<std::shared_ptr<Session>> sessions;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const Role role : {kOld, kNext, kCurrent}) {
      if (live_[role] != nullptr) sessions.push_back(live_[role]->session);
      drop(role, absl::Now(), orphans);
    }
  }
  end_routes(orphans, LossKind::kStopped, why);
  for (const auto& session : sessions) session->cancel();
}

bool SessionLink::is_idle() {
  std::lock_guard lock(mutex_);
  return num_open_ == 0;
}

}  // namespace lckv
