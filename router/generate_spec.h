// A checked Generate request: every default filled in, every limit held, text already turned into
// ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lckv/internal/v1/engine.pb.h"
#include "lckv/v1/inference.pb.h"
#include "router/fleet/model_info.h"

namespace lckv {

// What the caller already has of one choice.
struct ChoiceStart {
  std::vector<uint32_t> resumed;
  uint64_t num_text_bytes = 0;
  bool finished = false;  // nothing of it is to be sent
};

struct GenerateSpec {
  std::shared_ptr<const ModelInfo> model;
  std::string request_id;
  std::string traceparent;  // W3C; empty: the caller sent none
  std::string tenant;
  std::string affinity;
  std::string fingerprint;  // that the replica must have; empty: any
  int32_t priority = 0;
  std::vector<uint32_t> prompt;
  std::vector<ChoiceStart> choices;
  v1::Sampling sampling;  // every field set, the seed included
  std::optional<uint32_t> max_new_tokens;
  uint32_t min_new_tokens = 0;
  std::vector<std::string> stop_strings;
  std::vector<uint32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;
  bool with_text = false;
  std::optional<uint32_t> num_logprobs;
  std::optional<uint32_t> num_prompt_logprobs;
  bool skip_prefix_cache = false;
  std::string prefix_salt;
  internal::v1::PrefillMode prefill_mode = internal::v1::PREFILL_MODE_DEFAULT;
};

// The submit of one choice that has `ids` so far, without its handle.
internal::v1::Submit make_submit(const GenerateSpec& spec, uint32_t choice,
                                 const std::vector<uint32_t>& ids);

}  // namespace lckv
