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
      state_(options_.times, std::random_device{}()) {}

void SessionLink::tick(absl::Time now) {
  std::vector<std::shared_ptr<grpc::Channel>> unused;  // goes without the lock
  LinkState::Turn turn;
  ConnectionPtr closing;
  const bool beats = [&] {
    std::lock_guard lock(mutex_);
    const auto used = std::partition(retired_.begin(), retired_.end(),
                                     [](const auto& channel) { return channel.use_count() > 1; });
    unused.assign(std::move_iterator(used), std::move_iterator(retired_.end()));
    retired_.erase(used, retired_.end());
    turn = state_.tick(now);
    closing = retire(turn.closing);
    const bool any = !turn.beats.empty();
    send(std::move(turn.beats));
    return any;
  }();
  if (turn.given_up) {
    spdlog::warn("replica {} is silent for {}, its steps stand still for {}: given up",
                 options_.address, absl::FormatDuration(turn.silence),
                 absl::FormatDuration(turn.standstill));
  }
  if (turn.opening != 0) open(turn.opening);
  if (beats) flush();
  if (closing != nullptr) closing->session->cancel();
  if (turn.given_up) {
    end_routes(turn.orphans, LossKind::kDied,
               absl::UnavailableError("the replica stopped answering"));
  } else {
    end_routes(turn.orphans, LossKind::kMoved, absl::UnavailableError("the session grew old"));
  }
  // Time alone turns a silent replica unresponsive.
  if (beats || closing != nullptr) handlers_.on_change();
}

void SessionLink::open(uint64_t session) {
  auto self = shared_from_this();
  auto connection = std::make_shared<Connection>();
  connection->channel = open_channel(options_);
  connection->stub = internal::v1::Engine::NewStub(connection->channel);
  connection->session = std::make_shared<Session>();
  connection->session->set_handlers(
      {.on_frame = [self, session](const WorkerFrame& f) { self->on_frame(session, f); },
       .on_end = [self, session](const grpc::Status& s) { self->on_end(session, s); }});
  {
    std::lock_guard lock(mutex_);
    if (!state_.knows(session)) return;  // stopped meanwhile
    connections_[session] = connection;
    ++num_open_;
    LinkState::Outgoing opening{.session = session, .frame = {}};
    opening.frame.mutable_open()->set_router_id(options_.router_id);
    send({std::move(opening)});
  }
  connection->session->start(*connection->stub);
}

void SessionLink::on_frame(uint64_t session, const WorkerFrame& frame) {
  handlers_.on_frame_moved(true);
  const absl::Time now = absl::Now();
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model;
  if (frame.has_hello()) model = handlers_.on_hello(frame.hello());
  std::optional<SessionState::Received> received;
  ConnectionPtr rejected;
  {
    std::lock_guard lock(mutex_);
    received = state_.on_frame(session, frame, now);
    if (!received) return;
    if (frame.has_hello()) {
      if (model.ok()) {
        state_.greet(session, *model, now);
      } else {
        rejected = connections_.at(session);
      }
    }
  }
  if (rejected != nullptr) {
    spdlog::error("replica {} is unusable: {}", options_.address,
                  std::string(model.status().message()));
    rejected->session->cancel();
  } else if (frame.has_hello()) {
    spdlog::info("replica {} serves {} (id {})", options_.address, frame.hello().model(),
                 frame.hello().replica_id());
  }
  for (const Route& route : received->seated) route.sink->on_seated(route.attempt);
  for (const auto& delivery : received->deliveries) {
    delivery.route.sink->on_update(delivery.route.attempt, delivery.update);
  }
  if (received->refused) {
    received->refused->sink->on_refused(received->refused->attempt, frame.refused());
  }
  handlers_.on_change();
}

void SessionLink::on_end(uint64_t session, const grpc::Status& status) {
  LinkState::Ending ending;
  {
    std::lock_guard lock(mutex_);
    ending = state_.on_end(session, absl::Now());
    retire(session);
  }
  if (ending.was_ready) {
    spdlog::warn("replica {} is lost: {}", options_.address, status.error_message());
  }
  end_routes(ending.orphans, ending.kind, absl::UnavailableError("the replica was lost"));
  handlers_.on_change();
  // Last: once no session is open, what the handlers refer to may go.
  std::lock_guard lock(mutex_);
  --num_open_;
}

void SessionLink::end_routes(const std::vector<Route>& routes, LossKind kind,
                             const absl::Status& why) {
  for (const Route& route : routes) route.sink->on_lost(route.attempt, kind, why);
}

ReplicaView SessionLink::view() {
  std::lock_guard lock(mutex_);
  const ConnectionPtr connection = current();
  const bool connected = connection != nullptr && !state_.greeted() &&
                         connection->channel->GetState(false) == GRPC_CHANNEL_READY;
  ReplicaView view{.address = options_.address,
                   .state = state_.state(absl::Now(), connected),
                   .link = shared_from_this()};
  state_.describe(view);
  return view;
}

void SessionLink::send(std::vector<LinkState::Outgoing> frames) {
  for (LinkState::Outgoing& outgoing : frames) {
    connections_.at(outgoing.session)->session->enqueue(std::move(outgoing.frame));
    handlers_.on_frame_moved(false);
  }
}

SessionLink::ConnectionPtr SessionLink::retire(uint64_t session) {
  const auto it = connections_.find(session);
  if (it == connections_.end()) return nullptr;
  ConnectionPtr retired = std::move(it->second);
  connections_.erase(it);
  retired_.push_back(retired->channel);
  return retired;
}

SessionLink::ConnectionPtr SessionLink::current() const {
  const auto it = connections_.find(state_.current());
  return it == connections_.end() ? nullptr : it->second;
}

std::optional<uint64_t> SessionLink::submit(const std::shared_ptr<SequenceSink>& sink,
                                            const ModelInfo* model,
                                            std::vector<internal::v1::Submit> submits) {
  std::vector<LinkState::Outgoing> frames;
  std::lock_guard lock(mutex_);
  const auto first = state_.submit(sink, model, std::move(submits), absl::Now(), frames);
  send(std::move(frames));
  return first;
}

void SessionLink::cancel(uint64_t handle) {
  std::vector<LinkState::Outgoing> frames;
  std::lock_guard lock(mutex_);
  state_.cancel(handle, frames);
  send(std::move(frames));
}

void SessionLink::set_paused(uint64_t handle, bool paused) {
  std::vector<LinkState::Outgoing> frames;
  std::lock_guard lock(mutex_);
  state_.set_paused(handle, paused, absl::Now(), frames);
  send(std::move(frames));
}

void SessionLink::flush() {
  std::vector<ConnectionPtr> connections;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [session, connection] : connections_) connections.push_back(connection);
  }
  for (const ConnectionPtr& connection : connections) connection->session->flush();
}

void SessionLink::move_streams() {
  std::vector<Route> moved;
  {
    std::vector<LinkState::Outgoing> frames;
    std::lock_guard lock(mutex_);
    moved = state_.take_streams(frames);
    send(std::move(frames));
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
    ConnectionPtr connection;
  };
  auto asking = std::make_shared<Asking>();
  asking->request = request;
  asking->call.set_deadline(absl::ToChronoTime(deadline));
  {
    std::lock_guard lock(mutex_);
    asking->connection = current();
    if (asking->connection != nullptr) ++num_open_;
  }
  if (asking->connection == nullptr) {
    done(absl::UnavailableError("the replica is not connected"), {});
    return;
  }
  asking->connection->stub->async()->Drain(
      &asking->call, &asking->request, &asking->response,
      [self = shared_from_this(), asking, done = std::move(done)](const grpc::Status& status) {
        done(to_absl_status(status), asking->response.load());
        std::lock_guard lock(self->mutex_);
        --self->num_open_;
      });
}

void SessionLink::stop(LossKind kind, const absl::Status& why) {
  std::vector<Route> orphans;
  std::vector<ConnectionPtr> connections;
  {
    std::lock_guard lock(mutex_);
    orphans = state_.stop();
    while (!connections_.empty()) connections.push_back(retire(connections_.begin()->first));
  }
  end_routes(orphans, kind, why);
  for (const ConnectionPtr& connection : connections) connection->session->cancel();
}

bool SessionLink::is_idle() {
  std::lock_guard lock(mutex_);
  return num_open_ == 0;
}

}  // namespace lckv
