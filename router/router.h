// The router as an object: its fleet, its queue, its public port.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "router/access.h"
#include "router/api/admin_service.h"
#include "router/api/generate_call.h"
#include "router/api/inference_service.h"
#include "router/api/models_service.h"
#include "router/call_queue.h"
#include "router/call_registry.h"
#include "router/fleet/discovery.h"
#include "router/fleet/fleet.h"
#include "router/router_metrics.h"
#include "router/routing/routing_policy.h"
#include "router/tenants.h"
#include "rpc/logging.h"
#include "rpc/tls.h"

namespace lckv {

struct RouterOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 50051;  // 0: any free one
  DiscoveryOptions discovery;
  FleetOptions fleet;
  CallQueueOptions queue;
  CallOptions call;
  RetryBudgetOptions retries;
  TlsServerFiles tls;         // of the public port
  TlsClientFiles worker_tls;  // becomes fleet.link.credentials
  std::string tokens_file;    // empty: nobody is asked for a token
  std::string tenants_file;   // empty: no tenant is limited
  std::string routing_policy = "prefix-affinity";
  absl::Duration pulse_interval = absl::Milliseconds(50);
};

// Owner: main (or a test). One thread of its own, the pulse, drives all that time decides: beats,
// reconnects, queue deadlines, slow readers. `on_ready` is called on it when the router becomes
// ready and when it ceases: with a file of expected models from the start on, else as long as a
// replica is ready.
class Router {
 public:
  static absl::StatusOr<std::unique_ptr<Router>> start(const RouterOptions& options,
                                                       std::function<void(bool)> on_ready);
  ~Router();  // as stop() without grace
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;

  uint16_t port() const { return static_cast<uint16_t>(port_); }
  RouterMetrics& metrics() { return metrics_; }
  Fleet& fleet() { return fleet_; }

  // From now on not ready, whatever the replicas are; still accepting.
  void withdraw();
  // Accepts nothing new (clients see GOAWAY), lets streams go on for `grace`, ends the rest with
  // UNAVAILABLE and what they delivered. Idempotent.
  void stop(absl::Duration grace);

 private:
  Router(const RouterOptions& options, std::unique_ptr<const RoutingPolicy> policy,
         std::function<void(bool)> on_ready);
  void pulse();
  absl::Status listen();
  void beat(absl::Time now);
  void tell_stale_files();

  const RouterOptions options_;
  const std::function<void(bool)> on_ready_;
  const std::unique_ptr<const RoutingPolicy> policy_;
  RequestLog log_;
  // The pulse's own once it runs.
  TlsReload tls_;
  TlsReload worker_tls_;
  RouterMetrics metrics_;
  Access access_;
  TenantGate tenants_;
  CallRegistry registry_;
  Fleet fleet_;
  CallQueue queue_;
  RetryBudget retries_;
  CallEnvironment environment_;
  InferenceService inference_;
  ModelsService models_;
  AdminService admin_;
  std::unique_ptr<Discovery> discovery_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  bool ready_ = false;  // the pulse's own, as it was last told
  std::mutex mutex_;    // guards what follows
  bool withdrawn_ = false;
  bool stopped_ = false;
  absl::Time end_streams_at_ = absl::InfiniteFuture();
  std::thread pulse_thread_;
};

}  // namespace lckv
