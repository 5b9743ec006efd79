#include "rpc/metrics_server.h"

#include <exception>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"
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
    server->exposer_->RegisterCollectable(registry);
    server->port_ = static_cast<uint16_t>(server->exposer_->GetListeningPorts().at(0));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
  return server;
}

}  // namespace lckv
