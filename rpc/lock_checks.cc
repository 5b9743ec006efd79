#include "rpc/lock_checks.h"

#include "absl/synchronization/mutex.h"

namespace lckv {

void leave_lock_checks_out() {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

}  // namespace lckv
