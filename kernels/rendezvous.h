// RendezvousStore: where the ranks of one replica leave their addresses for each other before they
// are connected.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lckv {

// Both may be called from any thread, and `get` while another rank sets. Who fills it in decides
// where the values lie: at the leader, say.
struct RendezvousStore {
  std::function<absl::Status(const std::string& key, std::string bytes)> set;
  // Waits for the key. DeadlineExceeded where nobody set it in time.
  std::function<absl::StatusOr<std::string>(const std::string& key, absl::Time deadline)> get;
};

// Values in this process's memory, which copies of the store share. Holds what was set until the
// last copy is dropped; a key set twice is AlreadyExists: two ranks bear one number.
RendezvousStore rendezvous_in_memory();

}  // namespace lckv
