#include "router/api/reflection_guard.h"

#include "absl/strings/match.h"
#include "rpc/status_mapping.h"

namespace lckv {

grpc::Status ReflectionGuard::Process(const InputMetadata& metadata, grpc::AuthContext* /*context*/,
                                      OutputMetadata* /*consumed*/, OutputMetadata* /*response*/) {
  const auto path = metadata.find(":path");
  const bool is_ours =
      path != metadata.end() &&
      absl::StartsWith(absl::string_view(path->second.data(), path->second.size()), "/lckv.v1.");
  if (is_ours) return grpc::Status::OK;
  return to_grpc_status(access_.check(metadata, Right::kAdmin).status());
}

}  // namespace lckv
