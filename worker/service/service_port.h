// ServicePort: the gRPC server that routers open their sessions on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/tls.h"
#include "worker/service/engine_service.h"

namespace grpc {
class Server;
}

namespace lckv {

// Owner: main; the service outlives it.
class ServicePort {
 public:
  // `port` 0: any free one. Unavailable where the address cannot be had, InvalidArgument where a
  // file of `tls` cannot be used.
  static absl::StatusOr<std::unique_ptr<ServicePort>> open(const std::string& host, uint16_t port,
                                                           EngineService& service,
                                                           const TlsServerFiles& tls = {});
  ~ServicePort();
  ServicePort(const ServicePort&) = delete;
  ServicePort& operator=(const ServicePort&) = delete;

  uint16_t port() const { return port_; }
  // Takes over what has changed of the files of `tls`.
  void reload_tls(absl::Time now) { tls_reload_.poll(now); }
  // What some of them says now could not be taken over: an older state holds.
  bool has_stale_tls() const { return tls_reload_.stale(); }
  // Sessions that are still open after `patience` are cancelled; returns when all have ended.
  void close(absl::Duration patience);

 private:
  ServicePort();
  TlsReload tls_reload_;
  std::unique_ptr<grpc::Server> server_;
  uint16_t port_ = 0;
};

}  // namespace lckv
