// WorkerServer: what a worker shows to the outside, from before its model is loaded until the very
// end: the port for routers, metrics and health.
//
// Owner and only thread: main's. What metrics() and service() give is used by other threads too.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/health_server.h"
#include "rpc/metrics_server.h"
#include "rpc/shutdown.h"
#include "worker/config.h"
#include "worker/service/engine_service.h"
#include "worker/service/service_port.h"
#include "worker/service/worker_metrics.h"

namespace lckv {

class WorkerServer {
 public:
  // Listens; not ready yet. `log` outlives it. Errors: Unavailable or InvalidArgument naming the
  // port.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> open(const WorkerConfig& config,
                                                            RequestLog& log);

  WorkerMetrics& metrics() { return metrics_; }
  EngineService& service() { return service_; }

  void set_ready(absl::Duration since_start);
  // Ready as long as steps follow one another: looks whether they do, and after files of TLS.
  void look(absl::Time now);
  // Takes nothing new; what still runs short of `deadline` is asked to go on elsewhere.
  void drain(absl::Time deadline);
  // Ends every session. Health goes on until stop().
  void close();
  void stop() { health_->stop(); }

 private:
  WorkerServer(const WorkerConfig& config, RequestLog& log);
  absl::Status listen(const WorkerConfig& config);

  const absl::Duration step_timeout_;
  WorkerMetrics metrics_;
  EngineService service_;
  std::unique_ptr<HealthServer> health_;
  std::unique_ptr<MetricsServer> metrics_server_;
  std::unique_ptr<ServicePort> routers_;
  bool moves_ = true;
};

// Looks after the servers until SIGTERM or SIGINT; `look` is called as often.
void look_after(ShutdownSignal& signal, std::span<WorkerServer* const> servers,
                const std::function<void()>& look);

// Lets what runs finish within `timeout`, then closes.
void shut_down(std::span<WorkerServer* const> servers, absl::Duration timeout);

}  // namespace lckv
