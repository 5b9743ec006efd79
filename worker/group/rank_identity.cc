#include "worker/group/rank_identity.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lckv {

void write_identity(const RankIdentity& identity, internal::v1::Join& to) {
  to.set_rank(static_cast<uint32_t>(identity.rank));
  to.set_world_size(static_cast<uint32_t>(identity.world_size));
  to.set_life(identity.life);
  to.set_version(identity.version);
  to.set_model(identity.model);
  to.set_layer_map(identity.layer_map);
  to.set_numerics(identity.numerics);
  to.set_step_limits(identity.step_limits);
}

RankIdentity read_identity(const internal::v1::Join& from) {
  return {.rank = static_cast<int32_t>(from.rank()),
          .world_size = static_cast<int32_t>(from.world_size()),
          .life = from.life(),
          .version = from.version(),
          .model = from.model(),
          .layer_map = from.layer_map(),
          .numerics = from.numerics(),
          .step_limits = from.step_limits()};
}

std::string short_fingerprint(const std::string& text) {
  // FNV-1a.
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return absl::StrFormat("%016x", hash);
}

absl::Status compare_identities(const RankIdentity& leader, const RankIdentity& rank) {
  if (leader.life != rank.life) {
    return absl::PermissionDeniedError(
        absl::StrCat("rank ", rank.rank, " belongs to another life of this replica"));
  }
  const auto differs = [&rank](const char* what, const auto& of_leader, const auto& of_rank) {
    return absl::FailedPreconditionError(absl::StrCat(
        "different ", what, ": ", of_leader, " on the leader, ", of_rank, " on rank ", rank.rank));
  };
  if (leader.world_size != rank.world_size) {
    return differs("--tensor-parallel-size", leader.world_size, rank.world_size);
  }
  struct Trait {
    const char* name;
    const std::string RankIdentity::*value;
  };
  constexpr Trait kTraits[] = {{"version of the program", &RankIdentity::version},
                               {"content of the model", &RankIdentity::model},
                               {"layer map", &RankIdentity::layer_map},
                               {"numerics", &RankIdentity::numerics},
                               {"limits of steps", &RankIdentity::step_limits}};
  for (const Trait& trait : kTraits) {
    if (leader.*trait.value != rank.*trait.value) {
      return differs(trait.name, leader.*trait.value, rank.*trait.value);
    }
  }
  return absl::OkStatus();
}

}  // namespace lckv
