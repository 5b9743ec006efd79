// Validation of a Submit: a router has checked the request before, but nothing that a router sends
// may harm a worker. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "lckv/internal/v1/engine.pb.h"
#include "worker/scheduler/sequence_spec.h"

namespace lckv {

// What a served model accepts.
struct SubmitLimits {
  int32_t vocabulary = 0;
  int32_t max_context = 0;          // prompt plus generated tokens
  int32_t max_logprobs = 0;         // at most the vocabulary
  int32_t max_iterated_prompt = 0;  // tokens of a prompt in iterated mode: what staging holds
  bool has_cyclic_groups = false;   // else the prefill mode is of no consequence
  PrefillMode default_prefill_mode = PrefillMode::kExact;
  std::vector<int32_t> eos_token_ids;
};

// Errors: InvalidArgument with the field of the public request that is to blame
// (rpc/status_mapping.h).
absl::StatusOr<std::shared_ptr<const SequenceSpec>> check_submit(const internal::v1::Submit& submit,
                                                                 const SubmitLimits& limits);

}  // namespace lckv
