#include "router/router.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "grpcpp/server_builder.h"
#include "kernels/check.h"
#include "router/api/reflection_guard.h"
#include "rpc/server_options.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

// After the grace: for the last statuses to be sent, and for sessions to close.
constexpr absl::Duration kClosingTime = absl::Seconds(3);

absl::Status in_flag(const char* flag, const absl::Status& wrong) {
  return absl::Status(wrong.code(), absl::StrCat(flag, ": ", wrong.message()));
}

}  // namespace

Router::Router(const RouterOptions& options, std::unique_ptr<const RoutingPolicy> policy,
               std::function<void(bool)> on_ready)
    : options_(options),
      on_ready_(std::move(on_ready)),
      policy_(std::move(policy)),
      metrics_(policy_->name(), {.queue = options.queue.max_calls,
                                 .inflight = options.call.max_concurrent_requests}),
      access_(options.tokens_file),
      tenants_(
          options.tenants_file,
          {.on_running = [this](const auto& tenant,
                                auto count) { metrics_.tenant(tenant).running->Set(count); },
           .on_rejected =
               [this](const auto& tenant, const char* limit) {
                 metrics_.tenant(tenant).rejected.at(limit)->Increment();
               },
           .on_tokens = [this](const auto& tenant,
                               auto count) { metrics_.tenant(tenant).tokens->Increment(count); }}),
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
      environment_{options.call, fleet_,  queue_,   registry_, metrics_,
                   retries_,     access_, tenants_, log_},
      inference_(environment_),
      models_(fleet_, access_),
      admin_(fleet_, access_) {
  // Routers that count from one number would draw the same replicas.
  environment_.next_ticket = std::random_device{}();
}

absl::StatusOr<std::unique_ptr<Router>> Router::start(const RouterOptions& options,
                                                      std::function<void(bool)> on_ready) {
  auto policy = make_routing_policy(options.routing_policy);
  if (policy == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no routing policy ", options.routing_policy));
  }
  TlsReload worker_tls;
  auto worker_credentials =
      make_channel_credentials(options.worker_tls, "--worker-tls", worker_tls);
  if (!worker_credentials.ok()) return worker_credentials.status();
  RouterOptions completed = options;
  completed.fleet.link.credentials = *std::move(worker_credentials);
  std::random_device random;
  completed.fleet.link.router_id = absl::StrFormat("%08x%08x", random(), random());
  std::unique_ptr<Router> router(new Router(completed, std::move(policy), std::move(on_ready)));
  router->worker_tls_ = std::move(worker_tls);
  if (auto status = router->access_.load(); !status.ok()) return in_flag("--tokens", status);
  if (auto status = router->tenants_.load(); !status.ok()) return in_flag("--tenants", status);
  auto discovery = Discovery::start(options.discovery, [fleet = &router->fleet_](Candidates found) {
    fleet->set_candidates(std::move(found));
  });
  if (!discovery.ok()) return in_flag("--models", discovery.status());
  router->discovery_ = *std::move(discovery);
  if (absl::Status status = router->listen(); !status.ok()) return status;
  router->beat(absl::Now());  // so that no series is missing when metrics are asked for first
  router->pulse_thread_ = std::thread([raw = router.get()] { raw->pulse(); });
  return router;
}

absl::Status Router::listen() {
  auto credentials = make_server_credentials(options_.tls, tls_);
  if (!credentials.ok()) return credentials.status();
  grpc::ServerBuilder builder;
  if (access_.asks()) {
    // gRPC asks the guard on connections with TLS alone.
    if (options_.tls.certificate.empty()) {
      leave_reflection_out(builder);
    } else {
      (*credentials)->SetAuthMetadataProcessor(std::make_shared<ReflectionGuard>(access_));
    }
  }
  configure_public_server(builder);
  const std::string address = host_port(options_.host, options_.port);
  builder.AddListeningPort(address, *credentials, &port_);
  builder.RegisterService(&inference_);
  builder.RegisterService(&models_);
  builder.RegisterService(&admin_);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address));
  }
  return absl::OkStatus();
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
  tls_.poll(now);
  worker_tls_.poll(now);
  access_.poll(now);
  fleet_.tick(now);
  queue_.tick(now);
  for (const auto& call : registry_.all()) call->tick(now);
  const auto set = fleet_.snapshot();
  metrics_.set_replicas(*set);
  uint32_t num_routers = 1;
  for (const ReplicaView& replica : set->replicas) {
    num_routers = std::max(num_routers, replica.load.num_routers());
  }
  tenants_.tick(now, num_routers);
  tell_stale_files();
  bool withdrawn = false;
  {
    std::lock_guard lock(mutex_);
    withdrawn = withdrawn_;
  }
  const bool serves = !options_.discovery.models_file.empty() ||
                      std::any_of(set->replicas.begin(), set->replicas.end(),
                                  [](const auto& r) { return r.state == ReplicaState::kReady; });
  const bool ready = !withdrawn && serves;
  if (ready != ready_) {
    ready_ = ready;
    on_ready_(ready);
  }
}

void Router::tell_stale_files() {
  if (!options_.tls.certificate.empty()) metrics_.set_file_stale("tls", tls_.stale());
  if (!options_.worker_tls.ca.empty()) {
    metrics_.set_file_stale("worker_tls", worker_tls_.stale());
  }
  if (access_.asks()) metrics_.set_file_stale("tokens", access_.stale());
  if (tenants_.limits()) metrics_.set_file_stale("tenants", tenants_.stale());
  if (!options_.discovery.models_file.empty()) {
    metrics_.set_file_stale("models", discovery_->stale());
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
  if (discovery_) discovery_->stop();
  // Sessions refer to this object until gRPC is done with them.
  LCKV_CHECK(fleet_.stop(absl::Seconds(30)));
}

}  // namespace lckv
