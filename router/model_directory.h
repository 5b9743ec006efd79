// From a model's name to what its replicas say about it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "router/fleet/replica_set.h"

namespace lckv {

// The model that `name` means, taken from a ready replica where there is one. An empty name means
// the only model. NotFound; InvalidArgument where an empty name is ambiguous; Unavailable while a
// replica that might serve it has not introduced itself.
absl::StatusOr<std::shared_ptr<const ModelInfo>> find_model(const ReplicaSet& set,
                                                            const std::string& name);

// Of any replica that was ever here, ready or not.
bool knows_fingerprint(const ReplicaSet& set, const std::string& model,
                       const std::string& fingerprint);

}  // namespace lckv
