#include "client/request_flags.h"

#include <iostream>
#include <iterator>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "rpc/flags.h"

namespace lckv {
namespace {

void add_sampling_flags(CLI::App& app, RequestFlags& flags) {
  const std::string group = "Sampling";
  app.add_option("--temperature", flags.temperature, "0 is greedy")->group(group);
  app.add_option("--top-k", flags.top_k, "Most likely tokens to draw from; 0: all")->group(group);
  app.add_option("--top-p", flags.top_p, "Probability mass to draw from")->group(group);
  app.add_option("--min-p", flags.min_p, "Least probability, relative to the highest")
      ->group(group);
  app.add_option("--repetition-penalty", flags.repetition_penalty, "Divides logits of seen tokens")
      ->group(group);
  app.add_option("--presence-penalty", flags.presence_penalty, "Subtracted once a token was made")
      ->group(group);
  app.add_option("--frequency-penalty", flags.frequency_penalty, "Subtracted each time it was")
      ->group(group);
  app.add_option("--logit-bias", flags.logit_bias, "ID=VALUE, added to the token's logit")
      ->delimiter(',')
      ->type_name("ID=VALUE,...")
      ->group(group);
  app.add_option("--seed", flags.seed, "Of every random choice")->group(group);
}

void add_stopping_flags(CLI::App& app, RequestFlags& flags) {
  const std::string group = "Stopping";
  app.add_option("--max-new-tokens", flags.max_new_tokens, "At most so many")->group(group);
  app.add_option("--min-new-tokens", flags.min_new_tokens, "No stop token before")->group(group);
  app.add_option("--stop", flags.stop_strings, "Stop at this text; may be repeated")
      ->allow_extra_args(false)
      ->group(group);
  app.add_option("--stop-token-ids", flags.stop_token_ids, "Stop at these ids")
      ->delimiter(',')
      ->type_name("ID,...")
      ->group(group);
  app.add_flag("--ignore-eos", flags.ignore_eos, "Go on behind the model's end")->group(group);
  app.add_flag("--include-stop", flags.include_stop, "Print the stop string too")->group(group);
}

void add_output_flags(CLI::App& app, RequestFlags& flags) {
  const std::string group = "Output";
  app.add_flag("--omit-text", flags.omit_text, "Token ids only")->group(group);
  app.add_option("--logprobs", flags.num_logprobs, "Most likely tokens to report; needs --json")
      ->group(group);
  app.add_option("--prompt-logprobs", flags.num_prompt_logprobs, "The same of the prompt's tokens")
      ->group(group);
}

}  // namespace

void add_prefill_mode_flag(CLI::App& app, v1::PrefillMode& mode) {
  add_enum<v1::PrefillMode>(app, "--prefill-mode", mode,
                            {{"default", v1::PREFILL_MODE_UNSPECIFIED},
                             {"exact", v1::PREFILL_MODE_EXACT},
                             {"iterated", v1::PREFILL_MODE_ITERATED}},
                            "How the prompt is encoded where layers read upward")
      ->group("Request");
}

void add_request_flags(CLI::App& app, RequestFlags& flags) {
  const std::string group = "Request";
  CLI::Option* prompt = app.add_option("prompt", flags.prompt, "Text; - reads standard input");
  app.add_option("--token-ids", flags.token_ids, "The prompt as token ids, used as they are")
      ->delimiter(',')
      ->type_name("ID,...")
      ->excludes(prompt)
      ->group(group);
  app.add_option("--model", flags.model, "Name; may be absent where one is served")->group(group);
  app.add_option("--request-id", flags.request_id, "To find it in logs")->group(group);
  app.add_option("--num-choices", flags.num_choices, "Continuations")->group(group);
  app.add_option("--priority", flags.priority, "Higher is sooner")->group(group);
  app.add_option("--tenant", flags.tenant, "Fairness key")->group(group);
  app.add_option("--affinity", flags.affinity, "Prefers one replica")->group(group);
  add_prefill_mode_flag(app, flags.prefill_mode);
  add_sampling_flags(app, flags);
  add_stopping_flags(app, flags);
  add_output_flags(app, flags);
}

namespace {

absl::Status set_prompt(const RequestFlags& flags, v1::GenerateRequest& request) {
  if (!flags.token_ids.empty()) {
    for (const uint32_t id : flags.token_ids) request.mutable_token_ids()->add_ids(id);
    return absl::OkStatus();
  }
  if (flags.prompt.empty()) {
    return absl::InvalidArgumentError("give a prompt, or --token-ids");
  }
  if (flags.prompt == "-") {
    request.set_text(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  } else {
    request.set_text(flags.prompt);
  }
  return absl::OkStatus();
}

absl::Status set_sampling(const RequestFlags& flags, v1::Sampling& sampling) {
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.min_p) sampling.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) sampling.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling.set_frequency_penalty(*flags.frequency_penalty);
  if (flags.seed) sampling.set_seed(*flags.seed);
  for (const std::string& entry : flags.logit_bias) {
    const std::pair<std::string, std::string> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    uint32_t id = 0;
    float value = 0;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit-bias: \"", entry, "\" is not ID=VALUE"));
    }
    (*sampling.mutable_logit_bias())[id] = value;
  }
  return absl::OkStatus();
}

void set_stopping(const RequestFlags& flags, v1::Stopping& stopping) {
  if (flags.max_new_tokens) stopping.set_max_new_tokens(*flags.max_new_tokens);
  if (flags.min_new_tokens) stopping.set_min_new_tokens(*flags.min_new_tokens);
  for (const std::string& text : flags.stop_strings) stopping.add_stop_strings(text);
  for (const uint32_t id : flags.stop_token_ids) stopping.add_stop_token_ids(id);
  stopping.set_ignore_eos(flags.ignore_eos);
  stopping.set_include_stop(flags.include_stop);
}

}  // namespace

absl::StatusOr<v1::GenerateRequest> make_request(const RequestFlags& flags) {
  v1::GenerateRequest request;
  if (const absl::Status status = set_prompt(flags, request); !status.ok()) return status;
  if (const absl::Status status = set_sampling(flags, *request.mutable_sampling()); !status.ok()) {
    return status;
  }
  set_stopping(flags, *request.mutable_stopping());
  v1::Output& output = *request.mutable_output();
  output.set_omit_text(flags.omit_text);
  if (flags.num_logprobs) output.set_num_logprobs(*flags.num_logprobs);
  if (flags.num_prompt_logprobs) output.set_num_prompt_logprobs(*flags.num_prompt_logprobs);
  request.set_request_id(flags.request_id);
  request.set_model(flags.model);
  request.set_num_choices(flags.num_choices);
  request.set_priority(flags.priority);
  request.set_tenant(flags.tenant);
  request.set_affinity(flags.affinity);
  request.set_prefill_mode(flags.prefill_mode);
  return request;
}

}  // namespace lckv
