// SIGTERM and SIGINT as something main waits for.
#pragma once

#include "absl/time/time.h"

namespace lckv {

// SIGTERM and SIGINT end the process at once with exit code 128 + signal, also one with PID 1,
// which ignores signals left at their default.
void end_at_shutdown_signals();

// Owner: main, which constructs it before any other thread exists: threads inherit the blocked
// signals, so only wait() ever takes them. SIGPIPE is ignored from then on.
class ShutdownSignal {
 public:
  ShutdownSignal();
  ShutdownSignal(const ShutdownSignal&) = delete;
  ShutdownSignal& operator=(const ShutdownSignal&) = delete;

  // True once a signal has come; false when `timeout` passes first. After the first true, the next
  // signal ends the process at once with exit code 128 + signal.
  bool wait(absl::Duration timeout = absl::InfiniteDuration());

 private:
  bool received_ = false;
};

}  // namespace lckv
