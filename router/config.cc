#include "router/config.h"

#include <cstdio>
#include <limits>

#include "absl/strings/str_cat.h"
#include "router/fleet/models_file.h"
#include "rpc/byte_size.h"
#include "rpc/flags.h"
#include "rpc/health_check.h"
#include "rpc/tls_flags.h"

namespace lckv {
namespace {

constexpr int kUsageExitCode = 2;

std::string check_address(const std::string& address) {
  return is_worker_address(address) ? "" : absl::StrCat("\"", address, "\" is no host:port");
}

void add_endpoints(CLI::App& app, RouterConfig& config) {
  app.add_option("--host", config.router.host, "Address to listen on, for all ports")
      ->capture_default_str()
      ->type_name("")
      ->group("Endpoints");
  add_port(app, "--port", config.router.port, "Public gRPC port; 0 takes any free one")
      ->group("Endpoints");
  add_port(app, "--metrics-port", config.metrics_port, "Prometheus port; 0 takes any free one")
      ->group("Endpoints");
  add_port(app, "--health-port", config.health_port, "grpc.health.v1 port; 0 takes any free one")
      ->group("Endpoints");
  add_health_check_flag(app, config.router.host, config.health_port, "Endpoints");
}

void add_fleet(CLI::App& app, RouterConfig& config) {
  app.add_option("--workers", config.router.discovery.workers,
                 "Workers as host:port,host:port,...; a name stands for all its addresses")
      ->delimiter(',')
      ->check(CLI::Validator([](std::string& given) { return check_address(given); }, ""))
      ->type_name("")
      ->group("Replicas");
  app.add_option("--models", config.router.discovery.models_file,
                 "JSON file of the expected models and their workers, read again when it changes")
      ->type_name("FILE")
      ->group("Replicas");
  add_choice(app, "--routing-policy", config.router.routing_policy, policy_names(),
             "How a replica is chosen")
      ->group("Replicas");
  LinkOptions& link = config.router.fleet.link;
  add_duration(app, "--unresponsive-after", link.times.unresponsive_after,
               "Silence after which a replica gets no new work, or two of its longest steps")
      ->group("Replicas");
  add_duration(app, "--lost-after", link.times.lost_after,
               "Silence after which its streams move to others, or three of its longest steps")
      ->group("Replicas");
  add_duration(app, "--standstill-after", link.times.standstill_after,
               "The same for a replica that beats, but makes no step while it has work")
      ->group("Replicas");
  add_duration(app, "--max-session-age", link.times.max_session_age,
               "Age at which a session to a replica ends; at half of it another follows; 0s: never")
      ->group("Replicas");
  add_duration(app, "--resume-timeout", config.router.queue.resume_timeout,
               "Longest wait of a stream that lost its replica for an equal one to be ready")
      ->group("Replicas");
  app.add_option("--retry-budget", config.router.retries.capacity,
                 "Retries that a model may save up, at one for five calls; 0: none")
      ->type_name("NUMBER")
      ->capture_default_str()
      ->group("Replicas");
}

void add_security(CLI::App& app, RouterConfig& config) {
  const char* group = "Security";
  RouterOptions& router = config.router;
  add_tls_server_flags(app, router.tls, group);
  add_tls_client_flags(app, "--worker-tls", router.worker_tls, router.fleet.link.server_name,
                       group);
  add_plaintext_flag(app, router.fleet.allow_plaintext, group);
  app.add_option("--tokens", router.tokens_file,
                 "JSON file of bearer tokens, their tenants and rights; read again on change")
      ->type_name("FILE")
      ->group(group);
}

void add_limits(CLI::App& app, RouterConfig& config) {
  CallOptions& call = config.router.call;
  CallQueueOptions& queue = config.router.queue;
  app.add_option("--tenants", config.router.tenants_file,
                 "JSON file of limits per tenant, read again when it changes")
      ->type_name("FILE")
      ->group("Limits");
  app.add_option("--max-concurrent-requests", call.max_concurrent_requests,
                 "Generate calls at once")
      ->check(CLI::Range(size_t{1}, std::numeric_limits<size_t>::max()).description("NUMBER >= 1"))
      ->type_name("")
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--max-queue", queue.max_calls, "Calls that wait here when no replica takes them")
      ->type_name("NUMBER")
      ->capture_default_str()
      ->group("Limits");
  add_duration(app, "--max-queue-wait", queue.max_wait, "Longest wait of a call for a replica")
      ->group("Limits");
  add_duration(app, "--max-ready-wait", queue.max_wait_for_ready,
               "Longest wait of a call while no replica of its model is ready")
      ->group("Limits");
  add_duration(app, "--slow-reader-timeout", call.slow_reader_timeout,
               "Longest wait of one write for its client to read")
      ->group("Limits");
  app.add_option_function<std::string>(
         "--stream-buffer",
         [&call](const std::string& given) {
           call.relay.pause_above_bytes = *parse_byte_size(given);
           call.relay.unpause_below_bytes = call.relay.pause_above_bytes / 4;
         },
         "Events that may wait for a client before its sequences pause")
      ->check(CLI::Validator(
          [](std::string& given) { return std::string(parse_byte_size(given).status().message()); },
          "SIZE"))
      ->type_name("")
      ->default_str("256KiB")
      ->group("Limits");
}

// What no single flag can tell.
absl::Status check_router_config(const RouterConfig& config) {
  const DiscoveryOptions& discovery = config.router.discovery;
  if (discovery.workers.empty() && discovery.models_file.empty()) {
    return absl::InvalidArgumentError("--workers is required, or --models");
  }
  return check_plaintext(config.router.host, config.router.tls,
                         config.router.fleet.allow_plaintext);
}

}  // namespace

std::optional<int> parse_router_config(int argc, const char* const* argv, RouterConfig& config) {
  CLI::App app("Routes clients of lckv.v1 to lckv-worker replicas.", "lckv-router");
  app.set_version_flag("--version", LCKV_VERSION);
  add_endpoints(app, config);
  add_fleet(app, config);
  add_limits(app, config);
  add_security(app, config);
  add_duration(app, "--shutdown-delay", config.shutdown_delay,
               "After SIGTERM: go on accepting while load balancers forget this endpoint")
      ->group("Shutdown");
  add_duration(app, "--shutdown-grace", config.shutdown_grace,
               "After that: how long streams may go on")
      ->group("Shutdown");
  add_logging_flags(app, config.logging);
  if (const auto code = parse_flags(app, argc, argv)) return code;
  // Whether anything is known of the model or not, a call waits equally long.
  config.router.call.max_wait_for_model = config.router.queue.max_wait_for_ready;
  config.router.call.max_parked = config.router.queue.max_calls;
  if (const absl::Status status = check_router_config(config); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return kUsageExitCode;
  }
  return std::nullopt;
}

}  // namespace lckv
