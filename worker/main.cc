// lckv-worker: one model behind the Engine session: on one device, or on the devices of several
// ranks, which a launcher starts. This file is the launcher, the leader and the only rank.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "rpc/lock_checks.h"
#include "rpc/logging.h"
#include "rpc/shutdown.h"
#include "worker/config.h"
#include "worker/connect.h"
#include "worker/engine/engine.h"
#include "worker/fit_memory.h"
#include "worker/follow.h"
#include "worker/group/launcher.h"
#include "worker/group/leader_address.h"
#include "worker/group/leader_group.h"
#include "worker/group/plan_frames.h"
#include "worker/group/rank_metrics.h"
#include "worker/group/rank_watch.h"
#include "worker/launch.h"
#include "worker/scheduler/scheduler.h"
#include "worker/simulate.h"
#include "worker/startup.h"
#include "worker/worker_server.h"

namespace lckv {
namespace {

// What the other ranks get to hear that the replica ends.
constexpr absl::Duration kCloseTimeout = absl::Seconds(2);
// No step takes so long; one that does is not waited for.
constexpr std::chrono::seconds kStopTimeout(10);

// oneDNN's threads must sleep between operations, not spin: kernels' own threads and other
// processes share the cores. The OpenMP runtime reads its settings once, before main, so the
// process starts itself again with them.
void quiet_openmp(const WorkerConfig& config, char** argv) {
  const std::string threads = config.threads > 0 ? absl::StrCat(config.threads) : "";
  const char* given_threads = std::getenv("OMP_NUM_THREADS");
  const bool threads_set =
      threads.empty() || (given_threads != nullptr && threads == given_threads);
  if (std::getenv("OMP_WAIT_POLICY") != nullptr && threads_set) return;
  setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  if (!threads.empty()) setenv("OMP_NUM_THREADS", threads.c_str(), 1);
  execv("/proc/self/exe", argv);
  // Without /proc the worker still runs, only less quietly.
}

// The other ranks of the replica; null where there are none.
absl::StatusOr<std::unique_ptr<LeaderGroup>> open_group(const WorkerConfig& config,
                                                        ShutdownSignal& signal, RankWatch& watch) {
  if (config.tensor_parallel_size == 1) return nullptr;
  const auto address =
      address_of_leader(config.leader, absl::Now() + config.start_timeout,
                        [&signal](absl::Duration time) { return signal.wait(time); });
  if (!address.ok()) return address.status();
  auto group = LeaderGroup::open(*address, config.rank_tls,
                                 [&watch](const RankFailure& failure) { watch.fail(failure); });
  if (group.ok()) watch.listening((*group)->port());
  return group;
}

// Lets the other ranks join and connects with them.
absl::StatusOr<std::unique_ptr<Collectives>> gather_ranks(const WorkerConfig& config,
                                                          LoadedModel& loaded, LeaderGroup* group,
                                                          absl::Time deadline,
                                                          RankProgress& progress) {
  if (group == nullptr) return single_rank_collectives();
  progress.enter(Operation::kJoin);
  if (absl::Status status = group->admit(make_identity(config, loaded), deadline); !status.ok()) {
    return status;
  }
  progress.enter(Operation::kConnect);
  return connect_ranks(config, {.life = group->life(), .store = group->store()}, loaded, progress);
}

EngineOptions engine_options(LeaderGroup* group, RankProgress& progress, RankWatch& watch) {
  // Without its peers a rank has nothing to serve with, and nothing to end in order.
  EngineOptions options{.progress = &progress,
                        .failed = [&watch](const absl::Status& status) { watch.fail(status); }};
  if (group != nullptr) {
    options.on_plan = [group](const StepPlan& plan) { group->send(plan); };
    options.on_hold = [group] { group->hold(); };
    options.on_result = [group](const StepResult& result) {
      group->done(result.step, digest_of(result));
    };
  }
  return options;
}

// Loads the model and starts its engine.
absl::StatusOr<std::unique_ptr<Engine>> start_engine(WorkerConfig config, WorkerServer& server,
                                                     LeaderGroup* group, RankProgress& progress,
                                                     RankWatch& watch) {
  const absl::Time deadline = absl::Now() + config.start_timeout;
  auto loaded = read_model(config, shard_of(config));
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = open_device(config, *loaded); !status.ok()) return status;
  if (absl::Status status = open_weights(config, *loaded); !status.ok()) return status;
  auto ranks = gather_ranks(config, *loaded, group, deadline, progress);
  if (!ranks.ok()) return ranks.status();
  progress.enter(Operation::kLoad);
  if (absl::Status status = load_weights(config, *std::move(ranks), *loaded); !status.ok()) {
    return status;
  }
  if (absl::Status status = fit_memory(config, *loaded); !status.ok()) return status;
  log_geometry(config, *loaded);
  server.metrics().set_weights_load(loaded->load_time);
  server.metrics().set_geometry(metrics_geometry(config, *loaded));
  internal::v1::Hello hello = make_hello(*loaded);
  auto runner = make_runner(*loaded);
  if (!runner.ok()) return runner.status();
  if (group != nullptr) {
    progress.enter(Operation::kJoin);
    const absl::Status status = group->wait_ready(deadline);
    if (!status.ok()) return status;
  }
  // One step more than runs is launched, or on its way to the other ranks.
  if (group != nullptr || (*runner)->max_launched() > 1) {
    loaded->plan.scheduler.max_uncommitted_plans = 2;
  }
  auto scheduler = std::make_unique<Scheduler>(loaded->plan.scheduler, loaded->passes);
  auto engine =
      std::make_unique<Engine>(engine_options(group, progress, watch), std::move(scheduler),
                               *std::move(runner), [&server, group](const StepReport& report) {
                                 server.service().report(report);
                                 if (group != nullptr && !report.ran_step) group->idle();
                               });
  server.service().serve(std::move(hello), make_limits(config, *loaded),
                         [post_to = engine.get()](EngineCommand command) {
                           return post_to->post(std::move(command));
                         });
  engine->start();
  return engine;
}

// What cannot go on ends a replica of several ranks as a whole.
int give_up(const WorkerConfig& config, const absl::Status& status, RankWatch& watch) {
  if (config.tensor_parallel_size > 1) watch.fail(status);
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

int run(const WorkerConfig& config) {
  const absl::Time began = absl::Now();
  ShutdownSignal signal;
  RankProgress progress;
  RankWatch watch(
      {.pipe = config.launcher_pipe,
       .step_timeout = config.step_timeout,
       .start_timeout = config.tensor_parallel_size > 1 ? config.start_timeout + kStartSlack
                                                        : absl::InfiniteDuration()},
      progress);
  RequestLog log;
  auto opened = WorkerServer::open(config, log);
  if (!opened.ok()) return give_up(config, opened.status(), watch);
  WorkerServer& server = **opened;
  RankMetrics rank_metrics(*server.metrics().registry(), served_name(config), /*rank=*/0);
  auto group = open_group(config, signal, watch);
  if (absl::IsCancelled(group.status())) std::_Exit(0);
  if (!group.ok()) return give_up(config, group.status(), watch);
  auto loading = std::async(std::launch::async, [&] {
    return start_engine(config, server, group->get(), progress, watch);
  });
  while (loading.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
    if (*group != nullptr) (*group)->look(absl::Now());
    // Nothing is being served that would have to end in order.
    if (!signal.wait(absl::Milliseconds(50))) continue;
    if (*group != nullptr) (*group)->end(absl::Now() + kCloseTimeout);
    std::_Exit(0);
  }
  auto engine = loading.get();
  if (!engine.ok()) {
    server.close();
    // The metrics port alone would take two seconds to close.
    std::_Exit(give_up(config, engine.status(), watch));
  }
  server.set_ready(absl::Now() - began);
  log_fields(spdlog::level::info, "ready",
             {{"seconds", absl::StrFormat("%.2f", absl::ToDoubleSeconds(absl::Now() - began))}});
  WorkerServer* const servers[] = {&server};
  look_after(signal, servers, [&] {
    rank_metrics.observe(progress.look());
    if (*group != nullptr) (*group)->look(absl::Now());
  });
  shut_down(servers, config.drain_timeout);
  auto stopping = std::async(std::launch::async, [&] { (*engine)->stop(); });
  if (stopping.wait_for(kStopTimeout) != std::future_status::ready) {
    spdlog::error("the step in progress does not end: ending without it");
    std::_Exit(1);
  }
  if (*group != nullptr) (*group)->end(absl::Now() + kCloseTimeout);
  server.stop();
  spdlog::info("ended");
  return 0;
}

int run_launcher(const WorkerConfig& config, int argc, char** argv) {
  const auto options = plan_launch(config, {argv + 1, argv + argc});
  if (options.ok()) return launch(*options);
  std::fprintf(stderr, "%s\n", std::string(options.status().message()).c_str());
  return 2;
}

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  lckv::leave_lock_checks_out();
  lckv::WorkerConfig config;
  if (const auto code = lckv::parse_worker_config(argc, argv, config)) return *code;
  if (const absl::Status status = lckv::check_worker_config(config); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 2;
  }
  lckv::set_up_logging(config.logging);
  if (lckv::is_launcher(config)) return lckv::run_launcher(config, argc, argv);
  if (config.device == lckv::Device::kSim) return lckv::simulate(config);
  lckv::quiet_openmp(config, argv);
  return config.rank > 0 ? lckv::follow(config) : lckv::run(config);
}
