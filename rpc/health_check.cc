#include "rpc/health_check.h"

#include <chrono>
#include <cstdio>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "rpc/server_options.h"

namespace lckv {
namespace {

constexpr std::chrono::seconds kTimeout(2);

// The address to reach a server at that listens on all.
std::string reachable(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  return host == "::" ? "::1" : host;
}

int check_health(const std::string& host, uint16_t port) {
  const std::string address = host_port(reachable(host), port);
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + kTimeout);
  grpc::health::v1::HealthCheckRequest request;
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&call, request, &response);
  if (!status.ok()) {
    std::fprintf(stderr, "not ready: %s: %s\n", address.c_str(), status.error_message().c_str());
    return 1;
  }
  const bool serving = response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  std::printf("%s: %s\n", serving ? "ready" : "not ready", address.c_str());
  return serving ? 0 : 1;
}

}  // namespace

void add_health_check_flag(CLI::App& app, const std::string& host, const uint16_t& port,
                           const std::string& group) {
  app.add_flag_callback(
         "--check-health",
         [&host, &port] {
           // How a command line of CLI11 ends a program.
           throw CLI::RuntimeError(check_health(host, port));
         },
         "Ask the one that runs at --host and --health-port whether it is ready, and end")
      ->group(group);
}

}  // namespace lckv
