// grpc.health.v1 on a plaintext port of its own, so that probes need no credentials and never wait
// behind work.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

struct HealthOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;                  // 0: any free one
  std::vector<std::string> services;  // known from the start, besides the three standing ones
  bool reflection = true;             // false: none, for nobody is asked here who he is
};

// Owner: main. All methods are thread-safe. Standing services: "" and "readiness" (one state,
// NOT_SERVING at the start) and "liveness" (SERVING from the start). The named services of
// `options` begin as NOT_SERVING.
class HealthServer {
 public:
  static absl::StatusOr<std::unique_ptr<HealthServer>> start(const HealthOptions& options);
  ~HealthServer();  // as stop()
  HealthServer(const HealthServer&) = delete;
  HealthServer& operator=(const HealthServer&) = delete;

  // Tells every watcher of `service`; an unknown service becomes known. "" and "readiness" are one.
  void set_serving(absl::string_view service, bool serving);
  // Readiness and every named service at once; liveness stays.
  void set_ready(bool ready);
  uint16_t port() const;
  // Watches end with UNAVAILABLE; returns when all have ended. Idempotent.
  void stop();

 private:
  class Service;
  struct State;
  HealthServer();
  std::unique_ptr<State> state_;
};

}  // namespace lckv
