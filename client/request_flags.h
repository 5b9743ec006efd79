// The flags that make up a GenerateRequest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "lckv/v1/inference.pb.h"

namespace lckv {

// As given on the command line; what is absent is left to the server.
struct RequestFlags {
  std::string prompt;  // "-" reads standard input
  std::vector<uint32_t> token_ids;

  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::string> logit_bias;  // "id=value"
  std::optional<uint64_t> seed;

  std::optional<uint32_t> max_new_tokens;
  std::optional<uint32_t> min_new_tokens;
  std::vector<std::string> stop_strings;
  std::vector<uint32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;

  bool omit_text = false;
  std::optional<uint32_t> num_logprobs;
  std::optional<uint32_t> num_prompt_logprobs;

  std::string model;
  std::string request_id;
  std::string tenant;
  std::string affinity;
  uint32_t num_choices = 1;
  int32_t priority = 0;
  v1::PrefillMode prefill_mode = v1::PREFILL_MODE_UNSPECIFIED;
};

void add_request_flags(CLI::App& app, RequestFlags& flags);
// --prefill-mode default|exact|iterated.
void add_prefill_mode_flag(CLI::App& app, v1::PrefillMode& mode);

// InvalidArgument where a flag cannot be written into the message; limits are the server's to
// judge.
absl::StatusOr<v1::GenerateRequest> make_request(const RequestFlags& flags);

}  // namespace lckv
