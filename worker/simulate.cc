#include "worker/simulate.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/byte_size.h"
#include "rpc/logging.h"
#include "worker/engine/engine.h"
#include "worker/scheduler/scheduler.h"
#include "worker/sim/device_profile.h"
#include "worker/sim/simulated_runner.h"
#include "worker/sim/step_cost.h"
#include "worker/startup.h"
#include "worker/worker_server.h"

namespace lckv {
namespace {

// Beside the programs, wherever they were installed to.
std::string devices_folder() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return (program.parent_path().parent_path() / "share/lckv/devices").string();
}

StepCost cost_of(const DeviceProfile& device, const LoadedModel& loaded) {
  return {device,
          loaded.config,
          loaded.passes,
          {.dtype = loaded.plan.dtype,
           .num_ranks = loaded.shard.size,
           .block_bytes = loaded.plan.geometry.block_bytes}};
}

// What a device's memory leaves beside the weights.
absl::StatusOr<uint64_t> memory_for_kv(const WorkerConfig& config, const DeviceProfile& device,
                                       double weight_bytes) {
  const double usable = device.memory_bytes * config.gpu_memory_utilization;
  if (weight_bytes < usable) return static_cast<uint64_t>(usable - weight_bytes);
  return absl::InvalidArgumentError(absl::StrCat(
      "--sim-device ", config.sim_device, ": a rank's weights take ",
      format_byte_size(static_cast<uint64_t>(weight_bytes)), " of ",
      format_byte_size(static_cast<uint64_t>(usable)),
      "; give a larger --tensor-parallel-size, or --kv-cache-memory to leave that aside"));
}

// The model as a rank of such devices would hold it.
absl::StatusOr<LoadedModel> plan_model(WorkerConfig& config, const DeviceProfile& device) {
  auto loaded = read_model(config, {.size = config.tensor_parallel_size});
  if (!loaded.ok()) return loaded.status();
  loaded->weight_bytes = static_cast<uint64_t>(cost_of(device, *loaded).weight_bytes());
  if (!config.kv_cache_given) {
    const auto bytes = memory_for_kv(config, device, static_cast<double>(loaded->weight_bytes));
    if (!bytes.ok()) return bytes.status();
    config.kv_cache_bytes = *bytes;
    if (absl::Status status = update_plan(config, *loaded); !status.ok()) return status;
  }
  loaded->numerics = absl::StrCat("simulated on ", device.name);
  // Tokens depend on no device: a stream may move to any simulated replica of the model.
  loaded->fingerprint = absl::StrCat("simulated-", short_fingerprint(loaded->files.config));
  return loaded;
}

// A replica: outlived by nothing that it gave out.
struct Replica {
  std::unique_ptr<WorkerServer> server;
  std::unique_ptr<Engine> engine;
};

absl::StatusOr<Replica> start_replica(const WorkerConfig& config, const DeviceProfile& device,
                                      const LoadedModel& loaded, RequestLog& log) {
  auto server = WorkerServer::open(config, log);
  if (!server.ok()) return server.status();
  Replica replica{.server = *std::move(server)};
  replica.server->metrics().set_geometry(metrics_geometry(config, loaded));
  EngineService& service = replica.server->service();
  auto runner = std::make_unique<SimulatedRunner>(
      SimulatedRunnerOptions{.max_num_seqs = loaded.plan.runner.max_num_seqs,
                             .vocabulary = loaded.config.vocabulary_size,
                             .num_groups = loaded.passes.num_groups()},
      cost_of(device, loaded));
  replica.engine = std::make_unique<Engine>(
      EngineOptions{}, std::make_unique<Scheduler>(loaded.plan.scheduler, loaded.passes),
      std::move(runner), [&service](const StepReport& report) { service.report(report); });
  service.serve(make_hello(loaded), make_limits(config, loaded),
                [engine = replica.engine.get()](EngineCommand command) {
                  return engine->post(std::move(command));
                });
  replica.engine->start();
  return replica;
}

WorkerConfig config_of(WorkerConfig config, int32_t replica) {
  for (uint16_t* const port : {&config.port, &config.metrics_port, &config.health_port}) {
    if (*port != 0) *port = static_cast<uint16_t>(*port + replica);
  }
  return config;
}

absl::Status serve(WorkerConfig config, ShutdownSignal& signal) {
  const absl::Time began = absl::Now();
  const auto device = read_device_profile(config.sim_device, devices_folder());
  if (!device.ok()) return device.status();
  const auto loaded = plan_model(config, *device);
  if (!loaded.ok()) return loaded.status();
  log_geometry(config, *loaded);
  RequestLog log;
  std::vector<Replica> replicas;
  std::vector<WorkerServer*> servers;
  for (int32_t i = 0; i < config.sim_replicas; ++i) {
    auto replica = start_replica(config_of(config, i), *device, *loaded, log);
    if (!replica.ok()) return replica.status();
    replicas.push_back(*std::move(replica));
    servers.push_back(replicas.back().server.get());
  }
  for (WorkerServer* const server : servers) server->set_ready(absl::Now() - began);
  spdlog::info("ready: {} simulated replicas on {}", servers.size(), device->name);
  look_after(signal, servers, [] {});
  shut_down(servers, config.drain_timeout);
  for (const Replica& replica : replicas) {
    replica.engine->stop();
    replica.server->stop();
  }
  return absl::OkStatus();
}

}  // namespace

int simulate(const WorkerConfig& config) {
  ShutdownSignal signal;
  const absl::Status status = serve(config, signal);
  if (status.ok()) {
    spdlog::info("ended");
    return 0;
  }
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

}  // namespace lckv
