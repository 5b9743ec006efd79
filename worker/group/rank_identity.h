// RankIdentity: what a rank says of itself when it joins, and who may join whom. Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "lckv/internal/v1/rank.pb.h"

namespace lckv {

struct RankIdentity {
  int32_t rank = 0;
  int32_t world_size = 1;
  std::string life;         // the launcher's; empty where there is none
  std::string version;      // of the program
  std::string model;        // fingerprint of the checkpoint's content
  std::string layer_map;    // fingerprint of which layer reads whose keys and values
  std::string numerics;     // kernels, formats and modes
  std::string step_limits;  // seats, rows and blocks that plans are made for
};

void write_identity(const RankIdentity& identity, internal::v1::Join& to);
RankIdentity read_identity(const internal::v1::Join& from);

// Of the text, as 16 hex digits; equal everywhere.
std::string short_fingerprint(const std::string& text);

// Whether `rank` may be a part of the leader's replica, other than by its number. Errors:
// FailedPrecondition, one line that names what differs and both values. Of another life:
// PermissionDenied, which is no fault of this replica.
absl::Status compare_identities(const RankIdentity& leader, const RankIdentity& rank);

}  // namespace lckv
