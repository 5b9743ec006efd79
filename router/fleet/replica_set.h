// What the router knows about its replicas at one moment.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lckv/internal/v1/engine.pb.h"
#include "router/fleet/model_info.h"

namespace lckv {

class SessionLink;

enum class ReplicaState {
  kConnecting,  // not reached yet
  kLoading,     // reached, but it has not said Hello
  kReady,
  kDraining,      // takes no new work
  kUnresponsive,  // connected, but silent, or its step counter stands still while it has our work
  kLost,          // was there before; the link keeps trying
};

struct ReplicaView {
  std::string address;
  ReplicaState state = ReplicaState::kConnecting;
  // Of the last Hello, kept while the replica is lost; null before the first.
  std::shared_ptr<const ModelInfo> model;
  internal::v1::Load load;     // of the newest frame
  uint32_t num_in_flight = 0;  // own submits that this load does not count yet
  absl::Time step_time;        // when the step counter last moved
  std::shared_ptr<SessionLink> link;
  std::string origin;          // the host:port that its address was found by
  std::string expected_model;  // that it is there for; empty: any

  uint32_t available_credit() const {
    return load.credit() > num_in_flight ? load.credit() - num_in_flight : 0;
  }
};

// Immutable once published; every thread reads the same one.
struct ReplicaSet {
  std::vector<ReplicaView> replicas;
  // That are to be served, whether replicas of them are here or not; empty: nobody said.
  std::vector<std::string> expected_models;
};

}  // namespace lckv
