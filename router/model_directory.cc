#include "router/model_directory.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "rpc/status_mapping.h"

namespace lckv {

namespace {

// Whether `view` may yet turn out to serve a model that nobody has spoken of. An address that was
// never reached does not count where the same name led to a replica.
bool is_unknown(const ReplicaSet& set, const ReplicaView& view) {
  if (view.model != nullptr || !view.expected_model.empty()) return false;
  return std::none_of(set.replicas.begin(), set.replicas.end(), [&](const ReplicaView& other) {
    return other.model != nullptr && other.origin == view.origin;
  });
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ModelInfo>> find_model(const ReplicaSet& set,
                                                            const std::string& name) {
  std::shared_ptr<const ModelInfo> found;
  std::set<std::string> names(set.expected_models.begin(), set.expected_models.end());
  bool found_ready = false;
  bool all_known = !set.replicas.empty() || !names.empty();
  for (const ReplicaView& replica : set.replicas) {
    if (is_unknown(set, replica)) all_known = false;
    if (replica.model == nullptr) continue;
    names.insert(replica.model->hello.model());
    if (!name.empty() && replica.model->hello.model() != name) continue;
    const bool ready = replica.state == ReplicaState::kReady;
    if (found == nullptr || (ready && !found_ready)) found = replica.model;
    found_ready = found_ready || ready;
  }
  if (name.empty() && names.size() > 1) {
    return invalid_field("model", "is empty, and more than one model is served");
  }
  if (found != nullptr) return found;
  const bool is_expected = names.contains(name) || (name.empty() && !names.empty());
  if (!all_known || is_expected) {
    return with_retry(absl::UnavailableError("no replica of this model is ready"),
                      absl::Seconds(1));
  }
  return with_field(absl::NotFoundError(absl::StrCat("model: no model \"", name, "\" is served")),
                    "model", "is not served");
}

bool knows_fingerprint(const ReplicaSet& set, const std::string& model,
                       const std::string& fingerprint) {
  return std::any_of(set.replicas.begin(), set.replicas.end(), [&](const ReplicaView& replica) {
    return replica.model && replica.model->hello.model() == model &&
           replica.model->hello.fingerprint() == fingerprint;
  });
}

}  // namespace lckv
