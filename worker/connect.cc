#include "worker/connect.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/gloo_collectives.h"
#include "rpc/logging.h"
#include "worker/group/timed_collectives.h"

namespace lckv {
namespace {

// The address of this host's interface that leads to the leader, or, on the leader itself, its own.
// No packet is sent.
absl::StatusOr<std::string> own_address(const std::string& leader) {
  const auto place = split_leader(leader);
  if (!place.ok()) return place.status();
  const addrinfo hints{.ai_socktype = SOCK_DGRAM};
  addrinfo* found = nullptr;
  const std::string port = absl::StrCat(place->second);
  if (const int error = getaddrinfo(place->first.c_str(), port.c_str(), &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--leader ", leader, ": ", gai_strerror(error)));
  }
  sockaddr_storage own{};
  socklen_t length = sizeof(own);
  const int socket_fd = socket(found->ai_family, SOCK_DGRAM, 0);
  const bool routed = socket_fd >= 0 &&
                      connect(socket_fd, found->ai_addr, found->ai_addrlen) == 0 &&
                      getsockname(socket_fd, reinterpret_cast<sockaddr*>(&own), &length) == 0;
  if (socket_fd >= 0) close(socket_fd);
  freeaddrinfo(found);
  char host[NI_MAXHOST];
  if (!routed || getnameinfo(reinterpret_cast<sockaddr*>(&own), length, host, sizeof(host), nullptr,
                             0, NI_NUMERICHOST) != 0) {
    return absl::UnavailableError(absl::StrCat("no interface leads to --leader ", leader));
  }
  return std::string(host);
}

absl::StatusOr<std::unique_ptr<Collectives>> connect_hosts(const WorkerConfig& config,
                                                           MeetingPlace place) {
  const auto address = own_address(config.leader);
  if (!address.ok()) return address.status();
  return connect_gloo({.rank = config.rank,
                       .size = config.tensor_parallel_size,
                       .address = *address,
                       .life = std::move(place.life),
                       .store = std::move(place.store),
                       .timeout = config.start_timeout,
                       .call_timeout = config.step_timeout});
}

// What all ranks would say is for the leader to say.
std::function<void(absl::string_view)> say_once(int32_t rank) {
  return [rank](absl::string_view line) {
    if (rank == 0) spdlog::info("{}", std::string(line));
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> connect_ranks(const WorkerConfig& config,
                                                           MeetingPlace place, LoadedModel& loaded,
                                                           RankProgress& progress) {
  auto ranks = config.device != Device::kCuda
                   ? connect_hosts(config, std::move(place))
                   : connect_gpus({.rank = config.rank,
                                   .size = config.tensor_parallel_size,
                                   .life = std::move(place.life),
                                   .store = std::move(place.store),
                                   .reproducible = loaded.plan.reproducible,
                                   .shares_device = config.allow_shared_device,
                                   .timeout = config.start_timeout,
                                   .call_timeout = config.step_timeout,
                                   .say = say_once(config.rank)},
                                  *loaded.ops);
  if (!ranks.ok()) return ranks.status();
  return timed_collectives(*std::move(ranks), progress);
}

}  // namespace lckv
