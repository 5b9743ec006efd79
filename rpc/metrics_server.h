// The Prometheus text endpoint /metrics on a port of its own: what a registry holds, what every
// process tells of itself (rpc/process_metrics.h), and when its certificates expire.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/registry.h"
#include "rpc/certificate_metrics.h"

namespace prometheus {
class Exposer;
}

namespace lckv {

struct MetricsOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0: any free one
  CertificateFiles certificates;
};

// Owner: main. Two threads of the exposer answer scrapes; they read `registry`, whose families are
// thread-safe.
class MetricsServer {
 public:
  static absl::StatusOr<std::unique_ptr<MetricsServer>> start(
      const MetricsOptions& options, const std::shared_ptr<prometheus::Registry>& registry);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  uint16_t port() const { return port_; }

 private:
  MetricsServer();
  std::vector<std::shared_ptr<prometheus::Collectable>> own_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  uint16_t port_ = 0;
};

}  // namespace lckv
