#include <string>

#include "absl/time/clock.h"
#include "kernels/check.h"
#include "router/config.h"
#include "router/router.h"
#include "rpc/health_server.h"
#include "rpc/lock_checks.h"
#include "rpc/metrics_server.h"
#include "rpc/server_options.h"
#include "rpc/shutdown.h"
#include "spdlog/spdlog.h"

// jemalloc's; a build for a sanitizer has its allocator instead.
extern "C" [[gnu::weak]] int mallctl(const char* name, void* old_value, size_t* old_size,
                                     void* new_value, size_t new_size);

namespace lckv {
namespace {

// What a burst of streams needed goes back to the system a second after it. glibc's heaps keep it,
// each thread's at a high-water mark of its own, so that memory creeps for hours.
void give_freed_memory_back() {
  if (mallctl == nullptr) return;
  const auto set = [](const char* name, auto value) {
    LCKV_CHECK(mallctl(name, nullptr, nullptr, &value, sizeof value) == 0);
  };
  set("arenas.dirty_decay_ms", ssize_t{1000});
  set("arenas.muzzy_decay_ms", ssize_t{0});
  set("arena.0.dirty_decay_ms", ssize_t{1000});  // the one there is already
  set("arena.0.muzzy_decay_ms", ssize_t{0});
  set("background_thread", true);
}

int report(const absl::Status& status) {
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

int run(const RouterConfig& config, ShutdownSignal& shutdown) {
  const std::string& host = config.router.host;
  enable_reflection();
  auto health =
      HealthServer::start({.host = host,
                           .port = config.health_port,
                           .services = {"lckv.v1.Inference", "lckv.v1.Models", "lckv.v1.Admin"},
                           .reflection = config.router.tokens_file.empty()});
  if (!health.ok()) return report(health.status());
  auto router =
      Router::start(config.router, [&health](bool ready) { (*health)->set_ready(ready); });
  if (!router.ok()) return report(router.status());
  auto metrics =
      MetricsServer::start({.host = host,
                            .port = config.metrics_port,
                            .certificates = {{"tls", config.router.tls.certificate},
                                             {"worker_tls", config.router.worker_tls.certificate}}},
                           (*router)->metrics().registry());
  if (!metrics.ok()) return report(metrics.status());
  spdlog::info("lckv-router {} listens: gRPC {}, health {}, metrics http://{}/metrics",
               LCKV_VERSION, host_port(host, (*router)->port()), host_port(host, (*health)->port()),
               host_port(host, (*metrics)->port()));

  shutdown.wait();
  spdlog::info("shutting down: streams may go on for {}",
               absl::FormatDuration(config.shutdown_delay + config.shutdown_grace));
  (*router)->withdraw();
  absl::SleepFor(config.shutdown_delay);
  (*router)->stop(config.shutdown_grace);
  (*health)->stop();
  spdlog::info("ended");
  return 0;
}

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  lckv::leave_lock_checks_out();
  lckv::RouterConfig config;
  if (const auto code = lckv::parse_router_config(argc, argv, config)) return *code;
  lckv::give_freed_memory_back();
  lckv::ShutdownSignal shutdown;
  lckv::set_up_logging(config.logging);
  return lckv::run(config, shutdown);
}
