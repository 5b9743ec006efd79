// What any gRPC relay costs: one that passes bytes on and does nothing else, and a source of
// streams for it. Measurements of the router are set beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "tests/bench/emissions.h"

namespace grpc {
class Server;
}

namespace lckv::bench {

// Generate calls answered with a token per `step`, streams of a group all at once, as the sequences
// of a replica; at once where they ask for none.
class PacedSource {
 public:
  PacedSource(int num_groups, absl::Duration step, Emissions& emissions);
  ~PacedSource();
  std::string address() const;

 private:
  class Service;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

// Relays every call at `port` to `upstream`, until the process is told to end.
void run_bare_relay(uint16_t port, const std::string& upstream);

}  // namespace lckv::bench
