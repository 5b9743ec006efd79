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
      channel_(open_channel(options_)),
      stub_(internal::v1::Engine::NewStub(channel_)),
      connect_time_(absl::InfinitePast()),
      backoff_(options_.backoff_min),
      jitter_(std::random_device{}()) {}

void SessionLink::tick(absl::Time now) {
  std::vector<Route> orphans;
  std::shared_ptr<Session> beating;
  std::shared_ptr<Session> dropped;
  bool connect_now = false;
  bool changed = false;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    if (session_ == nullptr) {
      connect_now = now >= connect_time_;
    } else if (greeted_ && stall(now) > options_.lost_after) {
      spdlog::warn("replica {} stands still for {}: its session is given up", options_.address,
                   absl::FormatDuration(stall(now)));
      dropped = session_;
      drop_session(now, orphans);
      changed = true;
    } else if (now - beat_time_ >= options_.beat_interval) {
      beat_time_ = now;
      RouterFrame beat;
      beat.mutable_beat();
      send(std::move(beat));
      beating = session_;
      changed = true;  // time alone turns a silent replica unresponsive
    }
  }
  if (connect_now) connect(now);
  if (beating) beating->flush();
  if (dropped) dropped->cancel();
  end_routes(orphans, absl::UnavailableError("the replica stopped answering"));
  if (changed) handlers_.on_change();
}

void SessionLink::connect(absl::Time now) {
  auto self = shared_from_this();
  auto session = std::make_shared<Session>();
  // The handlers tell their own session from a later one by its address, which stays taken until
  // on_end.
  const Session* key = session.get();
  session->set_handlers({.on_frame = [self, key](const WorkerFrame& f) { self->on_frame(key, f); },
                         .on_end = [self, key](const grpc::Status& s) { self->on_end(key, s); }});
  {
    std::lock_guard lock(mutex_);
    if (stopped_ || session_ != nullptr) return;
    session_ = session;
    ++num_open_;
    greeted_ = false;
    load_.Clear();
    num_submitted_ = 0;
    frame_time_ = step_time_ = beat_time_ = now;
    RouterFrame open;
    open.mutable_open()->set_router_id(options_.router_id);
    send(std::move(open));
  }
  session->start(*stub_);
  session->flush();
}

void SessionLink::on_frame(const Session* session, const WorkerFrame& frame) {
  handlers_.on_frame_moved(true);
  const absl::Time now = absl::Now();
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model;
  if (frame.has_hello()) model = handlers_.on_hello(frame.hello());
  std::vector<Delivery> deliveries;
  std::optional<Route> refused;
  std::shared_ptr<Session> rejected;
  {
    std::lock_guard lock(mutex_);
    if (session != session_.get()) return;
    frame_time_ = now;
    if (frame.has_load()) note_load(frame.load(), now);
    if (frame.has_hello()) {
      if (model.ok()) {
        model_ = *model;
        greeted_ = true;
        backoff_ = options_.backoff_min;
        step_time_ = now;
      } else {
        rejected = session_;
      }
    }
    if (frame.has_step()) deliveries = sort_step(frame.step());
    if (frame.has_refused()) refused = take_route(frame.refused().handle());
  }
  if (rejected) {
    spdlog::error("replica {} is unusable: {}", options_.address,
                  std::string(model.status().message()));
    rejected->cancel();
  } else if (frame.has_hello()) {
    spdlog::info("replica {} serves {} (id {})", options_.address, frame.hello().model(),
                 frame.hello().replica_id());
  }
  for (const Delivery& delivery : deliveries) {
    delivery.route.sink->on_update(delivery.route.choice, delivery.update);
  }
  if (refused) refused->sink->on_refused(refused->choice, frame.refused());
  handlers_.on_change();
}

void SessionLink::on_end(const Session* session, const grpc::Status& status) {
  std::vector<Route> orphans;
  bool was_ready = false;
  {
    std::lock_guard lock(mutex_);
    if (session == session_.get()) {
      was_ready = greeted_;
      drop_session(absl::Now(), orphans);
    }
  }
  if (was_ready) {
    spdlog::warn("replica {} is lost: {}", options_.address, status.error_message());
  }
  end_routes(orphans, absl::UnavailableError("the replica was lost"));
  handlers_.on_change();
  // Last: once no session is open, what the handlers refer to may go.
  std::lock_guard lock(mutex_);
  --num_open_;
}

// Forgets the session and sets the time of the next, doubling the delay, by half at random.
void SessionLink::drop_session(absl::Time now, std::vector<Route>& orphans) {
  session_.reset();
  greeted_ = false;
  load_.Clear();
  for (auto& [handle, route] : routes_) orphans.push_back(std::move(route));
  routes_.clear();
  const double factor = std::uniform_real_distribution<double>(0.5, 1.0)(jitter_);
  connect_time_ = now + backoff_ * factor;
  backoff_ = std::min(backoff_ * 2, options_.backoff_max);
}

void SessionLink::end_routes(const std::vector<Route>& routes, const absl::Status& why) {
  for (const Route& route : routes) route.sink->on_lost(route.choice, why);
}

void SessionLink::note_load(const internal::v1::Load& load, absl::Time now) {
  if (load.step() != load_.step()) step_time_ = now;
  load_ = load;
}

// How long the replica has been silent, or has stood still while it had work of ours to do.
absl::Duration SessionLink::stall(absl::Time now) const {
  const absl::Duration silence = now - frame_time_;
  return has_work() ? std::max(silence, now - step_time_) : silence;
}

bool SessionLink::has_work() const {
  return std::any_of(routes_.begin(), routes_.end(),
                     [](const auto& entry) { return !entry.second.paused; });
}

ReplicaState SessionLink::state(absl::Time now) {
  if (session_ == nullptr || stopped_) {
    return model_ ? ReplicaState::kLost : ReplicaState::kConnecting;
  }
  if (!greeted_) {
    if (channel_->GetState(false) == GRPC_CHANNEL_READY) return ReplicaState::kLoading;
    return model_ ? ReplicaState::kLost : ReplicaState::kConnecting;
  }
  if (stall(now) > options_.unresponsive_after) return ReplicaState::kUnresponsive;
  return load_.draining() ? ReplicaState::kDraining : ReplicaState::kReady;
}

ReplicaView SessionLink::view() {
  std::lock_guard lock(mutex_);
  ReplicaView view{.address = options_.address,
                   .state = state(absl::Now()),
                   .model = model_,
                   .load = load_,
                   .step_time = step_time_,
                   .link = shared_from_this()};
  view.num_in_flight =
      static_cast<uint32_t>(num_submitted_ - std::min<uint64_t>(num_submitted_, load_.num_taken()));
  return view;
}

std::vector<SessionLink::Delivery> SessionLink::sort_step(const internal::v1::Step& step) {
  std::vector<Delivery> deliveries;
  std::unordered_map<uint64_t, size_t> index;
  auto update_of = [&](uint64_t handle) -> SequenceUpdate* {
    const auto [it, is_new] = index.try_emplace(handle, deliveries.size());
    if (is_new) {
      Route* route = route_of(handle);
      if (route == nullptr) {  // cancelled: its tokens may still be under way
        index.erase(it);
        return nullptr;
      }
      deliveries.push_back({.route = *route});
    }
    return &deliveries[it->second].update;
  };
  for (const auto& started : step.started()) {
    if (auto* update = update_of(started.handle())) update->started = &started;
  }
  for (const auto& prompt : step.prompt_logprobs()) {
    if (auto* update = update_of(prompt.handle())) update->prompt_logprobs.push_back(&prompt);
  }
  const int num_tokens = std::min(step.handle_size(), step.token_size());
  const bool has_logprobs = step.logprobs_size() == num_tokens;
  for (int i = 0; i < num_tokens; ++i) {
    SequenceUpdate* update = update_of(step.handle(i));
    if (update == nullptr) continue;
    update->tokens.push_back(step.token(i));
    if (has_logprobs) update->logprobs.push_back(&step.logprobs(i));
  }
  for (const auto& finished : step.finished()) {
    if (auto* update = update_of(finished.handle())) {
      update->finished = &finished;
      routes_.erase(finished.handle());
    }
  }
  return deliveries;
}

void SessionLink::send(RouterFrame frame) {
  if (session_ == nullptr) return;
  session_->enqueue(std::move(frame));
  handlers_.on_frame_moved(false);
}

SessionLink::Route* SessionLink::route_of(uint64_t handle) {
  const auto it = routes_.find(handle);
  return it == routes_.end() ? nullptr : &it->second;
}

std::optional<SessionLink::Route> SessionLink::take_route(uint64_t handle) {
  const auto it = routes_.find(handle);
  if (it == routes_.end()) return std::nullopt;
  std::optional<Route> route = std::move(it->second);
  routes_.erase(it);
  return route;
}

std::optional<uint64_t> SessionLink::submit(const std::shared_ptr<SequenceSink>& sink,
                                            const ModelInfo* model,
                                            std::vector<internal::v1::Submit> submits) {
  LCKV_CHECK(!submits.empty());
  std::lock_guard lock(mutex_);
  const uint64_t taken = std::min<uint64_t>(num_submitted_, load_.num_taken());
  if (!greeted_ || model_.get() != model || load_.draining() ||
      load_.credit() < num_submitted_ - taken + submits.size()) {
    return std::nullopt;
  }
  if (!has_work()) step_time_ = absl::Now();
  const uint64_t first = next_handle_;
  for (internal::v1::Submit& submit : submits) {
    const uint64_t handle = next_handle_++;
    submit.set_handle(handle);
    routes_[handle] = {.sink = sink, .choice = submit.choice()};
    RouterFrame frame;
    *frame.mutable_submit() = std::move(submit);
    send(std::move(frame));
  }
  num_submitted_ += submits.size();
  return first;
}

void SessionLink::cancel(uint64_t handle) {
  std::lock_guard lock(mutex_);
  if (!take_route(handle)) return;
  RouterFrame frame;
  frame.mutable_cancel()->set_handle(handle);
  send(std::move(frame));
}

void SessionLink::pause(uint64_t handle) {
  std::lock_guard lock(mutex_);
  Route* route = route_of(handle);
  if (route == nullptr) return;
  route->paused = true;
  RouterFrame frame;
  frame.mutable_pause()->set_handle(handle);
  send(std::move(frame));
}

void SessionLink::unpause(uint64_t handle) {
  std::lock_guard lock(mutex_);
  Route* route = route_of(handle);
  if (route == nullptr) return;
  if (!has_work()) step_time_ = absl::Now();
  route->paused = false;
  RouterFrame frame;
  frame.mutable_continue_()->set_handle(handle);
  send(std::move(frame));
}

void SessionLink::flush() {
  std::shared_ptr<Session> session;
  {
    std::lock_guard lock(mutex_);
    session = session_;
  }
  if (session) session->flush();
}

void SessionLink::stop(const absl::Status& why) {
  std::vector<Route> orphans;
  std::shared_ptr<Session> session;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    session = session_;
    drop_session(absl::Now(), orphans);
  }
  end_routes(orphans, why);
  if (session) session->cancel();
}

bool SessionLink::is_idle() {
  std::lock_guard lock(mutex_);
  return num_open_ == 0;
}

}  // namespace lckv
