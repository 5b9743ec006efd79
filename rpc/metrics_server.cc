#include "rpc/metrics_server.h"

#include <exception>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"
#include "rpc/process_metrics.h"
#include "rpc/server_options.h"

namespace lckv {

MetricsServer::MetricsServer() = default;
MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::start(
    const MetricsOptions& options, const std::shared_ptr<prometheus::Registry>& registry) {
  const std::string address = host_port(options.host, options.port);
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
    server->own_ = {std::make_shared<ProcessMetrics>(),
                    std::make_shared<CertificateMetrics>(options.certificates)};
    server->exposer_->RegisterCollectable(registry);
    for (const auto& own : server->own_) server->exposer_->RegisterCollectable(own);
    server->port_ = static_cast<uint16_t>(server->exposer_->GetListeningPorts().at(0));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
  return server;
}

}  // namespace lckv
