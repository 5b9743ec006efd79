#include "worker/service/service_port.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "rpc/server_options.h"

namespace lckv {

ServicePort::ServicePort() = default;
ServicePort::~ServicePort() { close(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<ServicePort>> ServicePort::open(const std::string& host,
                                                               uint16_t port,
                                                               EngineService& service,
                                                               const TlsServerFiles& tls) {
  std::unique_ptr<ServicePort> opened(new ServicePort);
  const auto credentials = make_server_credentials(tls, opened->tls_reload_);
  if (!credentials.ok()) return credentials.status();
  const std::string address = host_port(host, port);
  grpc::ServerBuilder builder;
  configure_internal_server(builder);
  int bound_port = 0;
  builder.AddListeningPort(address, *credentials, &bound_port);
  builder.RegisterService(&service);
  opened->server_ = builder.BuildAndStart();
  if (opened->server_ == nullptr || bound_port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot serve routers on ", address));
  }
  opened->port_ = static_cast<uint16_t>(bound_port);
  return opened;
}

void ServicePort::close(absl::Duration patience) {
  if (server_ == nullptr) return;
  server_->Shutdown(absl::ToChronoTime(absl::Now() + patience));
  server_.reset();
}

}  // namespace lckv
