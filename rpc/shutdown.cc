#include "rpc/shutdown.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/time/clock.h"

namespace lckv {
namespace {

// The longest single wait; longer ones are repeated, which also keeps timespec far from overflow.
constexpr absl::Duration kMaxWait = absl::Hours(1);

sigset_t shutdown_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

void end_at_once(int signal) { _exit(128 + signal); }

}  // namespace

void end_at_shutdown_signals() {
  struct sigaction action = {};
  action.sa_handler = end_at_once;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

ShutdownSignal::ShutdownSignal() {
  signal(SIGPIPE, SIG_IGN);
  end_at_shutdown_signals();
  const sigset_t set = shutdown_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

bool ShutdownSignal::wait(absl::Duration timeout) {
  if (received_) return true;
  const sigset_t set = shutdown_signals();
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    const absl::Duration left = std::clamp(deadline - absl::Now(), absl::ZeroDuration(), kMaxWait);
    const timespec wait_time = absl::ToTimespec(left);
    if (sigtimedwait(&set, nullptr, &wait_time) > 0) break;
    if (errno == EAGAIN && absl::Now() >= deadline) return false;
  }
  received_ = true;
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  return true;
}

}  // namespace lckv
