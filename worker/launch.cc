#include "worker/launch.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lckv {
namespace {

constexpr int kDefaultLeaderPort = 50063;
// Beyond draining: for sessions to close and the last step to end.
constexpr absl::Duration kCloseTimeout = absl::Seconds(20);

// Of a variable that LeaderWorkerSet sets in every pod; `otherwise` where it is not set.
absl::StatusOr<int32_t> read_variable(const char* name, int32_t otherwise) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return otherwise;
  int32_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " \"", text, "\" in the environment is no number from 0 on"));
  }
  return value;
}

absl::Status place_ranks(const WorkerConfig& config, LaunchOptions& options) {
  const int32_t size = config.tensor_parallel_size;
  const auto num_hosts = read_variable("LWS_GROUP_SIZE", 1);
  if (!num_hosts.ok()) return num_hosts.status();
  const auto host = read_variable("LWS_WORKER_INDEX", 0);
  if (!host.ok()) return host.status();
  if (config.local_ranks == 0 && (*num_hosts == 0 || size % *num_hosts != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel-size ", size, " cannot be shared out to LWS_GROUP_SIZE ",
                     *num_hosts, " hosts in equal parts; give --local-ranks and --first-rank"));
  }
  options.num_ranks = config.local_ranks > 0 ? config.local_ranks : size / *num_hosts;
  options.first_rank = config.first_rank >= 0 ? config.first_rank : *host * options.num_ranks;
  if (options.first_rank + options.num_ranks > size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ranks ", options.first_rank, " to ", options.first_rank + options.num_ranks - 1,
        " of --tensor-parallel-size ", size, " (--first-rank, --local-ranks) do not exist"));
  }
  return absl::OkStatus();
}

}  // namespace

bool is_launcher(const WorkerConfig& config) {
  return config.tensor_parallel_size > 1 && config.rank < 0 && config.device != Device::kSim;
}

absl::StatusOr<LaunchOptions> plan_launch(const WorkerConfig& config,
                                          std::vector<std::string> arguments) {
  LaunchOptions options{.arguments = std::move(arguments),
                        .rank_timeout = config.rank_timeout,
                        .stop_timeout = config.drain_timeout + kCloseTimeout};
  if (absl::Status status = place_ranks(config, options); !status.ok()) return status;
  const bool is_alone = options.num_ranks == config.tensor_parallel_size;
  options.leader = config.leader;
  if (const char* host = std::getenv("LWS_LEADER_ADDRESS"); options.leader.empty() && host) {
    options.leader = absl::StrCat(host, ":", kDefaultLeaderPort);
  }
  if (options.leader.empty()) {
    if (!is_alone) {
      return absl::InvalidArgumentError(
          "--leader HOST:PORT is needed where the ranks are on several hosts");
    }
    options.leader = "127.0.0.1:0";
  }
  const auto leader = split_leader(options.leader);
  if (!leader.ok()) return leader.status();
  if (leader->second == 0 && !is_alone) {
    return absl::InvalidArgumentError(
        absl::StrCat("--leader ", options.leader, ": ranks on other hosts need its port"));
  }
  if (is_alone) {
    std::random_device random;
    options.life = absl::StrFormat("%08x%08x", random(), random());
  }
  if (config.threads == 0) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    options.arguments.push_back("--threads");
    options.arguments.push_back(absl::StrCat(std::max(cores / options.num_ranks, 1)));
  }
  return options;
}

}  // namespace lckv
