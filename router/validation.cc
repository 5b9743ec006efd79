#include "router/validation.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

constexpr uint32_t kMaxChoices = 128;
constexpr int kMaxStopStrings = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxStopTokens = 64;
constexpr size_t kMaxBiases = 1024;
constexpr size_t kMaxNameBytes = 256;

absl::Status check_name(absl::string_view field, const std::string& value) {
  if (value.size() <= kMaxNameBytes) return absl::OkStatus();
  return invalid_field(field,
                       absl::StrCat("has ", value.size(), " bytes, the limit is ", kMaxNameBytes));
}

struct FloatRange {
  absl::string_view field;
  bool present;
  float value;
  bool holds;  // false for NaN too, because every comparison with it is
  absl::string_view expected;
};

absl::Status check_sampling(const v1::Sampling& s) {
  const FloatRange ranges[] = {
      {"sampling.temperature", s.has_temperature(), s.temperature(), s.temperature() >= 0,
       "must be at least 0"},
      {"sampling.top_p", s.has_top_p(), s.top_p(), s.top_p() > 0 && s.top_p() <= 1,
       "must be in (0, 1]"},
      {"sampling.min_p", s.has_min_p(), s.min_p(), s.min_p() >= 0 && s.min_p() < 1,
       "must be in [0, 1)"},
      {"sampling.repetition_penalty", s.has_repetition_penalty(), s.repetition_penalty(),
       s.repetition_penalty() > 0, "must be above 0"},
      {"sampling.presence_penalty", s.has_presence_penalty(), s.presence_penalty(), true, ""},
      {"sampling.frequency_penalty", s.has_frequency_penalty(), s.frequency_penalty(), true, ""},
  };
  for (const FloatRange& range : ranges) {
    if (!range.present) continue;
    if (!std::isfinite(range.value)) return invalid_field(range.field, "is not a finite number");
    if (!range.holds) return invalid_field(range.field, range.expected);
  }
  if (s.logit_bias().size() > kMaxBiases) {
    return invalid_field("sampling.logit_bias",
                         absl::StrCat("has more than ", kMaxBiases, " entries"));
  }
  for (const auto& [id, bias] : s.logit_bias()) {
    if (!std::isfinite(bias)) {
      return invalid_field(absl::StrCat("sampling.logit_bias[", id, "]"), "is not a finite number");
    }
  }
  return absl::OkStatus();
}

absl::Status check_stopping(const v1::Stopping& stopping) {
  if (stopping.has_max_new_tokens() && stopping.min_new_tokens() > stopping.max_new_tokens()) {
    return invalid_field("stopping.min_new_tokens", "is above max_new_tokens");
  }
  if (stopping.stop_strings_size() > kMaxStopStrings) {
    return invalid_field("stopping.stop_strings",
                         absl::StrCat("has more than ", kMaxStopStrings, " entries"));
  }
  for (int i = 0; i < stopping.stop_strings_size(); ++i) {
    const std::string& stop = stopping.stop_strings(i);
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return invalid_field(absl::StrCat("stopping.stop_strings[", i, "]"),
                           stop.empty() ? std::string("is empty")
                                        : absl::StrCat("has more than ", kMaxStopBytes, " bytes"));
    }
  }
  if (stopping.stop_token_ids_size() > kMaxStopTokens) {
    return invalid_field("stopping.stop_token_ids",
                         absl::StrCat("has more than ", kMaxStopTokens, " entries"));
  }
  return absl::OkStatus();
}

absl::Status check_resume(const v1::Resume& resume, uint32_t num_choices) {
  std::vector<bool> seen(num_choices, false);
  for (int i = 0; i < resume.choices_size(); ++i) {
    const uint32_t choice = resume.choices(i).choice();
    const std::string field = absl::StrCat("resume.choices[", i, "].choice");
    if (choice >= num_choices) return invalid_field(field, "is not below num_choices");
    if (seen[choice]) return invalid_field(field, "is listed twice");
    seen[choice] = true;
  }
  return absl::OkStatus();
}

template <typename Ids>
absl::Status check_ids(absl::string_view field, const Ids& ids, uint32_t vocabulary_size) {
  for (int i = 0; i < static_cast<int>(ids.size()); ++i) {
    if (ids[i] < vocabulary_size) continue;
    return invalid_field(
        absl::StrCat(field, "[", i, "]"),
        absl::StrCat("is ", ids[i], ", the vocabulary has ", vocabulary_size, " ids"));
  }
  return absl::OkStatus();
}

// Text so long that it cannot fit is refused before the tokenizer works on it. A normaliser may
// shorten text; four times is more than any does that keeps the text's meaning.
absl::Status check_text_length(const std::string& text, const ModelInfo& model) {
  const uint64_t longest = uint64_t{model.hello.max_context_tokens()} *
                           model.tokenizer->vocabulary().max_entry_bytes * 4;
  if (text.size() <= longest) return absl::OkStatus();
  return invalid_field(
      "text", absl::StrCat("has ", text.size(), " bytes, more than the model's context can hold"));
}

absl::StatusOr<std::vector<uint32_t>> prompt_ids(const v1::GenerateRequest& request,
                                                 const ModelInfo& model) {
  if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    if (ids.empty()) return invalid_field("token_ids.ids", "the prompt is empty");
    return std::vector<uint32_t>(ids.begin(), ids.end());
  }
  if (model.tokenizer == nullptr) {
    return invalid_field("text", "this model is served without a tokenizer; send token_ids");
  }
  if (absl::Status status = check_text_length(request.text(), model); !status.ok()) return status;
  auto ids = model.tokenizer->encode(request.text());
  if (ids.ok() && ids->empty()) return invalid_field("text", "the prompt is empty");
  return ids;
}

template <typename Field>
void fill(bool given, bool in_config, Field from_config, Field standard, Field current,
          void (v1::Sampling::*set)(Field), v1::Sampling& sampling) {
  (sampling.*set)(given ? current : in_config ? from_config : standard);
}

// Request, else generation config, else the API's default.
void fill_sampling(const internal::v1::GenerationDefaults& config, uint64_t seed, v1::Sampling& s) {
  fill(s.has_temperature(), config.has_temperature(), config.temperature(), 1.0f, s.temperature(),
       &v1::Sampling::set_temperature, s);
  fill(s.has_top_k(), config.has_top_k(), config.top_k(), 0u, s.top_k(), &v1::Sampling::set_top_k,
       s);
  fill(s.has_top_p(), config.has_top_p(), config.top_p(), 1.0f, s.top_p(), &v1::Sampling::set_top_p,
       s);
  fill(s.has_min_p(), config.has_min_p(), config.min_p(), 0.0f, s.min_p(), &v1::Sampling::set_min_p,
       s);
  fill(s.has_repetition_penalty(), config.has_repetition_penalty(), config.repetition_penalty(),
       1.0f, s.repetition_penalty(), &v1::Sampling::set_repetition_penalty, s);
  s.set_presence_penalty(s.presence_penalty());
  s.set_frequency_penalty(s.frequency_penalty());
  if (!s.has_seed()) s.set_seed(seed);
}

absl::Status check_lengths(const GenerateSpec& spec, absl::string_view prompt_field) {
  const uint64_t limit = spec.model->hello.max_context_tokens();
  const uint64_t prompt = spec.prompt.size();
  const bool generates = !spec.max_new_tokens || *spec.max_new_tokens > 0;
  if (prompt + (generates ? 1 : 0) > limit) {
    return invalid_field(prompt_field,
                         absl::StrCat("the prompt has ", prompt, " tokens, the model's context ",
                                      limit, generates ? ", one of them generated" : ""));
  }
  for (size_t i = 0; i < spec.choices.size(); ++i) {
    const uint64_t resumed = spec.choices[i].resumed.size();
    if (prompt + resumed > limit) {
      return invalid_field("resume.choices", "prompt and resumed ids exceed the model's context");
    }
    if (spec.max_new_tokens && resumed > *spec.max_new_tokens) {
      return invalid_field("resume.choices", "has more ids than max_new_tokens");
    }
  }
  return absl::OkStatus();
}

absl::Status check_logprobs(const v1::Output& output, uint32_t limit) {
  const std::string why = absl::StrCat("is above the server's limit of ", limit);
  if (output.num_logprobs() > limit) return invalid_field("output.num_logprobs", why);
  if (output.num_prompt_logprobs() > limit) return invalid_field("output.num_prompt_logprobs", why);
  return absl::OkStatus();
}

// Ids against the vocabulary, wherever the request has some.
absl::Status check_all_ids(const v1::GenerateRequest& request, uint32_t vocabulary_size) {
  absl::Status status = check_ids("token_ids.ids", request.token_ids().ids(), vocabulary_size);
  if (!status.ok()) return status;
  status =
      check_ids("stopping.stop_token_ids", request.stopping().stop_token_ids(), vocabulary_size);
  if (!status.ok()) return status;
  for (const auto& [id, bias] : request.sampling().logit_bias()) {
    if (id >= vocabulary_size) {
      return invalid_field(absl::StrCat("sampling.logit_bias[", id, "]"),
                           absl::StrCat("the vocabulary has ", vocabulary_size, " ids"));
    }
  }
  for (int i = 0; i < request.resume().choices_size(); ++i) {
    status = check_ids(absl::StrCat("resume.choices[", i, "].ids"),
                       request.resume().choices(i).ids(), vocabulary_size);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void take_stopping(const v1::Stopping& stopping, const internal::v1::GenerationDefaults& config,
                   GenerateSpec& spec) {
  spec.min_new_tokens = stopping.min_new_tokens();
  if (stopping.has_max_new_tokens()) {
    spec.max_new_tokens = stopping.max_new_tokens();
  } else if (config.has_max_new_tokens()) {
    // The caller's own minimum is stronger than a default it did not ask for.
    spec.max_new_tokens = std::max(config.max_new_tokens(), spec.min_new_tokens);
  }
  spec.stop_strings.assign(stopping.stop_strings().begin(), stopping.stop_strings().end());
  spec.stop_token_ids.assign(stopping.stop_token_ids().begin(), stopping.stop_token_ids().end());
  spec.ignore_eos = stopping.ignore_eos();
  spec.include_stop = stopping.include_stop();
}

}  // namespace

absl::Status check_request(const v1::GenerateRequest& request) {
  const std::pair<absl::string_view, const std::string*> names[] = {
      {"request_id", &request.request_id()},
      {"tenant", &request.tenant()},
      {"affinity", &request.affinity()},
      {"prefix_cache.salt", &request.prefix_cache().salt()}};
  for (const auto& [field, value] : names) {
    if (absl::Status status = check_name(field, *value); !status.ok()) return status;
  }
  if (request.has_chat()) return unserved_field("chat", "chat prompts are not served yet");
  if (request.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return invalid_field("prompt", "one of text and token_ids is needed");
  }
  if (request.num_choices() > kMaxChoices) {
    return invalid_field("num_choices", absl::StrCat("is above ", kMaxChoices));
  }
  if (!v1::PrefillMode_IsValid(request.prefill_mode())) {
    return invalid_field("prefill_mode", absl::StrCat(static_cast<int>(request.prefill_mode()),
                                                      " is no PrefillMode"));
  }
  if (absl::Status status = check_sampling(request.sampling()); !status.ok()) return status;
  if (absl::Status status = check_stopping(request.stopping()); !status.ok()) return status;
  return check_resume(request.resume(), std::max(1u, request.num_choices()));
}

absl::StatusOr<GenerateSpec> make_spec(const v1::GenerateRequest& request,
                                       std::shared_ptr<const ModelInfo> model, uint64_t seed) {
  const internal::v1::Hello& hello = model->hello;
  absl::Status status = check_all_ids(request, hello.vocabulary_size());
  if (!status.ok()) return status;
  status = check_logprobs(request.output(), model->max_logprobs());
  if (!status.ok()) return status;

  GenerateSpec spec{.model = model,
                    .request_id = request.request_id(),
                    .tenant = request.tenant(),
                    .affinity = request.affinity(),
                    .fingerprint = request.resume().fingerprint(),
                    .priority = request.priority(),
                    .sampling = request.sampling()};
  fill_sampling(hello.generation_defaults(), seed, spec.sampling);
  if (request.has_resume() && !request.sampling().has_seed() && spec.sampling.temperature() > 0) {
    return invalid_field("sampling.seed", "resume needs the seed that Started reported");
  }
  take_stopping(request.stopping(), hello.generation_defaults(), spec);
  spec.with_text = model->tokenizer != nullptr && !request.output().omit_text();
  if (!spec.stop_strings.empty() && model->tokenizer == nullptr) {
    return invalid_field("stopping.stop_strings", "this model is served without a tokenizer");
  }
  if (request.output().has_num_logprobs()) spec.num_logprobs = request.output().num_logprobs();
  if (request.output().has_num_prompt_logprobs()) {
    spec.num_prompt_logprobs = request.output().num_prompt_logprobs();
  }
  spec.skip_prefix_cache = request.prefix_cache().skip();
  spec.prefix_salt = request.prefix_cache().salt();
  spec.prefill_mode = static_cast<internal::v1::PrefillMode>(request.prefill_mode());
  spec.choices.resize(std::max(1u, request.num_choices()));
  for (const v1::ChoiceProgress& progress : request.resume().choices()) {
    spec.choices[progress.choice()] = {.resumed = {progress.ids().begin(), progress.ids().end()},
                                       .num_text_bytes = progress.num_text_bytes(),
                                       .finished = progress.finished()};
  }
  auto prompt = prompt_ids(request, *model);
  if (!prompt.ok()) return prompt.status();
  spec.prompt = *std::move(prompt);
  const absl::string_view prompt_field = request.has_text() ? "text" : "token_ids.ids";
  if (request.has_text()) {
    // A tokenizer may know more ids than the model has embeddings.
    status = check_ids("text", spec.prompt, hello.vocabulary_size());
    if (!status.ok()) return status;
  }
  status = check_lengths(spec, prompt_field);
  if (!status.ok()) return status;
  return spec;
}

}  // namespace lckv
