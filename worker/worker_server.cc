#include "worker/worker_server.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/time/clock.h"
#include "rpc/logging.h"
#include "rpc/server_options.h"
#include "worker/serving_plan.h"

namespace lckv {
namespace {

constexpr char kServiceName[] = "lckv.internal.v1.Engine";
// Before the drain ends, streams are asked to go on elsewhere.
constexpr absl::Duration kMoveTime = absl::Seconds(5);
// How often main looks after readiness and the step's age.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(200);
constexpr absl::Duration kDrainInterval = absl::Milliseconds(20);
// What open streams get to hear that the worker ends.
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);

size_t num_sequences(std::span<WorkerServer* const> servers) {
  size_t sum = 0;
  for (WorkerServer* const server : servers) sum += server->service().num_sequences();
  return sum;
}

}  // namespace

WorkerServer::WorkerServer(const WorkerConfig& config, RequestLog& log)
    : step_timeout_(config.step_timeout),
      metrics_(std::make_shared<prometheus::Registry>(), served_name(config), LCKV_VERSION),
      service_({.session = {.silence_limit = config.session_lease},
                .drain_grace = config.drain_timeout,
                .max_waiting = config.max_waiting},
               &metrics_, &log) {}

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::open(const WorkerConfig& config,
                                                                 RequestLog& log) {
  auto server = absl::WrapUnique(new WorkerServer(config, log));
  if (absl::Status status = server->listen(config); !status.ok()) return status;
  return server;
}

absl::Status WorkerServer::listen(const WorkerConfig& config) {
  auto health = HealthServer::start(
      {.host = config.host, .port = config.health_port, .services = {kServiceName}});
  if (!health.ok()) return health.status();
  health_ = *std::move(health);
  auto metrics_server =
      MetricsServer::start({.host = config.host,
                            .port = config.metrics_port,
                            .certificates = {{"tls", config.tls.certificate},
                                             {"rank_tls", config.rank_tls.files.certificate}}},
                           metrics_.registry());
  if (!metrics_server.ok()) return metrics_server.status();
  metrics_server_ = *std::move(metrics_server);
  enable_reflection();
  auto routers = ServicePort::open(config.host, config.port, service_, config.tls);
  if (!routers.ok()) return routers.status();
  routers_ = *std::move(routers);
  log_fields(spdlog::level::info, "listening",
             {{"routers", host_port(config.host, routers_->port())},
              {"metrics", host_port(config.host, metrics_server_->port())},
              {"health", host_port(config.host, health_->port())}});
  return absl::OkStatus();
}

void WorkerServer::set_ready(absl::Duration since_start) {
  health_->set_ready(true);
  metrics_.set_ready(since_start);
}

void WorkerServer::look(absl::Time now) {
  routers_->reload_tls(now);
  metrics_.set_tls_stale(routers_->has_stale_tls());
  const absl::Duration age = service_.step_age(now);
  metrics_.set_step_age(age);
  const bool moves = age <= step_timeout_;
  if (moves == moves_) return;
  moves_ = moves;
  health_->set_ready(moves);
  if (moves) {
    spdlog::info("steps go on: ready again");
  } else {
    spdlog::error("work has waited {} without a step: not ready", absl::FormatDuration(age));
  }
}

void WorkerServer::drain(absl::Time deadline) {
  health_->set_ready(false);
  const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
  service_.drain(deadline - std::min(kMoveTime, left / 2));
}

void WorkerServer::close() {
  service_.close();
  routers_->close(kCloseTimeout);
}

void look_after(ShutdownSignal& signal, std::span<WorkerServer* const> servers,
                const std::function<void()>& look) {
  while (!signal.wait(kWatchInterval)) {
    for (WorkerServer* const server : servers) server->look(absl::Now());
    look();
  }
}

void shut_down(std::span<WorkerServer* const> servers, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (WorkerServer* const server : servers) server->drain(deadline);
  spdlog::info("draining: {} sequences", num_sequences(servers));
  while (num_sequences(servers) > 0 && absl::Now() < deadline) absl::SleepFor(kDrainInterval);
  if (const size_t left = num_sequences(servers); left > 0) {
    spdlog::warn("{} sequences are cut off after {}", left, absl::FormatDuration(timeout));
  }
  for (WorkerServer* const server : servers) server->close();
}

}  // namespace lckv
