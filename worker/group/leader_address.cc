#include "worker/group/leader_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

constexpr absl::Duration kAskAgain = absl::Milliseconds(500);

bool is_address(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> ignored;
  return host.front() == '[' || inet_pton(AF_INET, host.c_str(), ignored.data()) == 1 ||
         inet_pton(AF_INET6, host.c_str(), ignored.data()) == 1;
}

bool is_of_this_machine(const addrinfo& address) {
  const int socket_fd = socket(address.ai_family, SOCK_STREAM, 0);
  if (socket_fd < 0) return false;
  const bool bound = bind(socket_fd, address.ai_addr, address.ai_addrlen) == 0;  // to any port
  close(socket_fd);
  return bound;
}

// The name's first address that is this machine's; empty: it has none.
std::string own_address_of(const std::string& name) {
  const addrinfo hints{.ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (getaddrinfo(name.c_str(), nullptr, &hints, &found) != 0) return "";
  std::array<char, NI_MAXHOST> host = {};
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    if (!is_of_this_machine(*one)) continue;
    if (getnameinfo(one->ai_addr, one->ai_addrlen, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      break;
    }
  }
  freeaddrinfo(found);
  return host.data();
}

}  // namespace

absl::StatusOr<std::string> address_of_leader(const std::string& leader, absl::Time deadline,
                                              const std::function<bool(absl::Duration)>& stopped) {
  const size_t colon = leader.rfind(':');
  const std::string name = leader.substr(0, colon);
  if (is_address(name)) return leader;
  for (bool is_first = true;; is_first = false) {
    const std::string address = own_address_of(name);
    if (!address.empty()) {
      const std::string host =
          address.find(':') == std::string::npos ? address : absl::StrCat("[", address, "]");
      return absl::StrCat(host, leader.substr(colon));
    }
    if (is_first) spdlog::info("waiting until {} (--leader) leads to this machine", name);
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(
          absl::StrCat("--leader ", leader, ": the name leads to no address of this machine"));
    }
    if (stopped(kAskAgain)) return absl::CancelledError("told to end");
  }
}

}  // namespace lckv
