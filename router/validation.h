// The limits of the public API: what can never succeed is refused here, naming the field.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lckv/v1/inference.pb.h"
#include "router/fleet/model_info.h"
#include "router/generate_spec.h"

namespace lckv {

// What holds whatever the model: lengths, ranges, finite numbers, enumerations, fields that are not
// served yet.
absl::Status check_request(const v1::GenerateRequest& request);

// What the model decides: the prompt becomes ids, defaults come from its generation config, ids and
// counts are held against its vocabulary and context. `request` has passed check_request. `seed` is
// used where the request has none.
absl::StatusOr<GenerateSpec> make_spec(const v1::GenerateRequest& request,
                                       std::shared_ptr<const ModelInfo> model, uint64_t seed);

}  // namespace lckv
