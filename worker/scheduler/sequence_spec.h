// What is asked of one sequence: immutable, validated before it reaches the scheduler.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lckv {

// The public API's Sampling with every default filled in (proto/lckv/v1/inference.proto).
struct SamplingSpec {
  float temperature = 1.0F;  // 0: greedy
  uint32_t top_k = 0;        // 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;                    // over prompt and generated tokens
  float presence_penalty = 0.0F;                      // over generated tokens
  float frequency_penalty = 0.0F;                     // over generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;  // ascending by id
  uint64_t seed = 0;
  uint32_t choice = 0;
};

enum class PrefillMode : uint8_t { kExact, kIterated };

struct SequenceSpec {
  std::string request_id;          // for logs, as the next
  std::string traceparent;         // W3C Trace Context of the router's span; empty: none
  std::string tenant;              // fairness key; tenants share no KV blocks
  std::string prefix_salt;         // neither do requests of different salts
  bool skip_prefix_cache = false;  // neither reads nor writes shared KV blocks
  int32_t priority = 0;            // higher is sooner
  bool continued = false;          // goes on after a loss: seated before those that never ran
  std::vector<int32_t> prompt;     // at least one token
  std::vector<int32_t> resumed;    // generated before: fed back, neither sampled nor reported again
  SamplingSpec sampling;
  // Counts `resumed`. 0: the prompt is only scored. At most what the context leaves.
  int32_t max_new_tokens = 0;
  // The limit above is what the context left: reaching it is kContextFull, not kMaxNewTokens.
  bool max_is_context = false;
  int32_t min_new_tokens = 0;
  std::vector<int32_t> eos_token_ids;   // empty where end of sequence is ignored
  std::vector<int32_t> stop_token_ids;  // ascending
  std::optional<int32_t> num_logprobs;  // absent: none; 0: the token's own only
  std::optional<int32_t> num_prompt_logprobs;
  PrefillMode prefill_mode = PrefillMode::kExact;
};

}  // namespace lckv
