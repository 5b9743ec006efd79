// Abseil's search for deadlocks, which Debian's build of it has on.
#pragma once

namespace lckv {

// Leaves it out: it takes one lock of the whole process at every lock of one of gRPC's mutexes.
// Once, first thing in main.
void leave_lock_checks_out();

}  // namespace lckv
