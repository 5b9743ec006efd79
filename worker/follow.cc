#include "worker/follow.h"

#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/byte_size.h"
#include "rpc/logging.h"
#include "rpc/metrics_server.h"
#include "rpc/server_options.h"
#include "rpc/shutdown.h"
#include "worker/connect.h"
#include "worker/fit_memory.h"
#include "worker/group/follower_link.h"
#include "worker/group/rank_metrics.h"
#include "worker/group/rank_watch.h"
#include "worker/group/run_rank.h"
#include "worker/startup.h"

namespace lckv {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(50);

absl::StatusOr<std::unique_ptr<MetricsServer>> serve_metrics(
    const WorkerConfig& config, const std::shared_ptr<prometheus::Registry>& registry) {
  const int port = config.rank_metrics_port + config.rank;
  if (port > 0xffff) {
    return absl::InvalidArgumentError(absl::StrCat("--rank-metrics-port ", config.rank_metrics_port,
                                                   " plus rank ", config.rank, " is no port"));
  }
  auto server =
      MetricsServer::start({.host = config.host, .port = static_cast<uint16_t>(port)}, registry);
  if (server.ok())
    spdlog::info("rank {} serves metrics on {}", config.rank,
                 host_port(config.host, (*server)->port()));
  return server;
}

// Joins, loads and runs the leader's plans until it ends the replica.
absl::Status serve_leader(WorkerConfig config, RankProgress& progress, RankWatch& watch) {
  const absl::Time deadline = absl::Now() + config.start_timeout;
  auto loaded = read_model(config, shard_of(config));
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = open_device(config, *loaded); !status.ok()) return status;
  if (absl::Status status = open_weights(config, *loaded); !status.ok()) return status;
  progress.enter(Operation::kJoin);
  auto joined =
      FollowerLink::join(config.leader, config.rank_tls, make_identity(config, *loaded), deadline);
  if (!joined.ok()) return joined.status();
  const std::shared_ptr<FollowerLink> link = *std::move(joined);
  watch.set_last_words([link](const RankFailure& failure) { link->say_failed(failure); });
  progress.enter(Operation::kConnect);
  auto ranks =
      connect_ranks(config, {.life = link->life(), .store = link->store()}, *loaded, progress);
  if (!ranks.ok()) return ranks.status();
  progress.enter(Operation::kLoad);
  if (absl::Status status = load_weights(config, *std::move(ranks), *loaded); !status.ok()) {
    return status;
  }
  if (absl::Status status = fit_memory(config, *loaded); !status.ok()) return status;
  auto runner = make_runner(*loaded);
  if (!runner.ok()) return runner.status();
  if (absl::Status status = link->ready(); !status.ok()) return status;
  log_fields(spdlog::level::info, "ready",
             {{"rank", absl::StrCat(config.rank, " of ", config.tensor_parallel_size)},
              {"weights", format_byte_size(loaded->weight_bytes)},
              {"replicated_weights", format_byte_size(loaded->replicated_bytes)}});
  absl::Status status = run_rank(*link, **runner, progress);
  if (status.ok()) watch.set_last_words(nullptr);
  return status;
}

}  // namespace

int follow(const WorkerConfig& config) {
  ShutdownSignal signal;
  RankProgress progress;
  RankWatch watch({.rank = config.rank,
                   .pipe = config.launcher_pipe,
                   .step_timeout = config.step_timeout,
                   .start_timeout = config.start_timeout + kStartSlack},
                  progress);
  const auto registry = std::make_shared<prometheus::Registry>();
  RankMetrics metrics(*registry, served_name(config), config.rank);
  std::unique_ptr<MetricsServer> metrics_server;
  if (config.rank_metrics_port > 0) {
    auto server = serve_metrics(config, registry);
    if (!server.ok()) watch.fail(server.status());
    metrics_server = *std::move(server);
  }
  auto serving =
      std::async(std::launch::async, [&] { return serve_leader(config, progress, watch); });
  bool told_to_end = false;
  while (serving.wait_for(absl::ToChronoMilliseconds(kLook)) != std::future_status::ready) {
    metrics.observe(progress.look());
    if (told_to_end || !signal.wait(absl::ZeroDuration())) continue;
    told_to_end = true;
    if (progress.look().num_turns == 0) std::_Exit(0);
    spdlog::info("rank {} ends when its leader does", config.rank);
  }
  const absl::Status status = serving.get();
  if (!status.ok()) watch.fail(status);
  return 0;
}

}  // namespace lckv
