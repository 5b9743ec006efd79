// Where the leader of a replica's ranks listens.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lckv {

// `leader`, host:port, with the host as an address of this machine. A name is looked up: in a
// cluster it leads to a new pod only seconds after that has begun, so that it is asked for again
// until `deadline`. `stopped` waits for so long, and says whether to go on no more.
//
// Errors: Unavailable naming --leader where the name leads elsewhere until the deadline; Cancelled
// where it was stopped.
absl::StatusOr<std::string> address_of_leader(const std::string& leader, absl::Time deadline,
                                              const std::function<bool(absl::Duration)>& stopped);

}  // namespace lckv
