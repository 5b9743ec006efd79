// What a replica's Hello says about the model it serves.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lckv/internal/v1/engine.pb.h"
#include "router/text/tokenizer.h"

namespace lckv {

// Immutable, any thread.
struct ModelInfo {
  internal::v1::Hello hello;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: served by token ids only

  // Most likely tokens that one logprobs entry may hold.
  uint32_t max_logprobs() const;
};

// `known` may be null; where its tokenizer files are equal, its tokenizer is shared instead of
// parsed again. InvalidArgument where the Hello contradicts itself or its tokenizer is broken.
absl::StatusOr<std::shared_ptr<const ModelInfo>> make_model_info(internal::v1::Hello hello,
                                                                 const ModelInfo* known);

// Whether a request checked and tokenized against one can run on the other.
bool takes_same_requests(const ModelInfo& a, const ModelInfo& b);

}  // namespace lckv
