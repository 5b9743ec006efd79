#include "router/router.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "kernels/check.h"
#include "rpc/server_options.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

// After the grace: for the last statuses to be sent, and for sessions to close.
constexpr absl::Duration kClosingTime = absl::Seconds(3);

}  // namespace

Router::Router(const RouterOptions& options, std::unique_ptr<const RoutingPolicy> policy,
               std::function<void(bool)> on_ready)
    : options_(options),
      on_ready_(std::move(on_ready)),
      policy_(std::move(policy)),
      metrics_(policy_->name()),
      fleet_(
          options.fleet, [this] { queue_.dispatch(); },
          [this](bool received) { metrics_.count_frame(received); }),
      queue_(options.queue,
             {.snapshot = [this] { return fleet_.snapshot(); },
              .refresh = [this] { fleet_.refresh(); }},
             *policy_,
             [this](const std::string& model, int change) {
               metrics_.model(model).queue_depth->Increment(change);
             }),
      retries_(options.retries),
      environment_{options.call, fleet_, queue_, registry_, metrics_, retries_},
      inference_(environment_),
      models_(fleet_),
      admin_(fleet_) {}

absl::StatusOr<std::unique_ptr<Router>> Router::start(const RouterOptions& options,
                                                      std::function<void(bool)> on_ready) {
  auto policy = make_routing_policy(options.routing_policy);
  if (policy == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no routing policy ", options.routing_policy));
  }
  std::unique_ptr<Router> router(new Router(options, std::move(policy), std::move(on_ready)));
  grpc::ServerBuilder builder;
  configure_public_server(builder);
  const std::string address = host_port(options.host, options.port);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &router->port_);
  builder.RegisterService(&router->inference_);
  builder.RegisterService(&router->models_);
  builder.RegisterService(&router->admin_);
  router->server_ = builder.BuildAndStart();
  if (router->server_ == nullptr || router->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address));
  }
  router->pulse_thread_ = std::thread([raw = router.get()] { raw->pulse(); });
  return router;
}

Router::~Router() { stop(absl::ZeroDuration()); }

void Router::pulse() {
  for (;;) {
    absl::Time end_streams_at;
    {
      std::lock_guard lock(mutex_);
      if (stopped_) return;
      end_streams_at = end_streams_at_;
    }
    const absl::Time now = absl::Now();
    beat(now);
    if (now >= end_streams_at) {
      for (const auto& call : registry_.all()) {
        call->end(absl::UnavailableError("the router shuts down"));
      }
    }
    absl::SleepFor(options_.pulse_interval);
  }
}

void Router::beat(absl::Time now) {
  fleet_.tick(now);
  queue_.tick(now);
  for (const auto& call : registry_.all()) call->tick(now);
  const auto set = fleet_.snapshot();
  metrics_.set_replicas(*set);
  bool withdrawn = false;
  {
    std::lock_guard lock(mutex_);
    withdrawn = withdrawn_;
  }
  const bool ready = !withdrawn && std::any_of(set->replicas.begin(), set->replicas.end(),
                                               [](const ReplicaView& r) {
                                                 return r.state == ReplicaState::kReady;
                                               });
  if (ready != ready_) {
    ready_ = ready;
    on_ready_(ready);
  }
}

void Router::withdraw() {
  std::lock_guard lock(mutex_);
  withdrawn_ = true;
}

void Router::stop(absl::Duration grace) {
  if (server_ != nullptr) {
    {
      std::lock_guard lock(mutex_);
      end_streams_at_ = absl::Now() + grace;
    }
    server_->Shutdown(absl::ToChronoTime(absl::Now() + grace + kClosingTime));
    server_->Wait();
    server_.reset();
  }
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  if (pulse_thread_.joinable()) pulse_thread_.join();
  // Sessions refer to this object until gRPC is done with them.
  LCKV_CHECK(fleet_.stop(absl::Seconds(30)));
}

}  // namespace lckv
