#include "worker/service/submit_check.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/status_mapping.h"
#include "rpc/trace_span.h"

namespace lckv {
namespace {

// Limits of the public API (proto/lckv/v1/inference.proto).
constexpr uint32_t kMaxChoices = 128;
constexpr int kMaxStopTokenIds = 64;
constexpr size_t kMaxLogitBiases = 1024;
constexpr size_t kMaxNameBytes = 256;

template <typename Ids>
absl::Status check_ids(const Ids& ids, const SubmitLimits& limits, absl::string_view field) {
  for (const uint32_t id : ids) {
    if (id >= static_cast<uint32_t>(limits.vocabulary)) {
      return invalid_field(
          field, absl::StrCat("token id ", id, " is not in the vocabulary of ", limits.vocabulary));
    }
  }
  return absl::OkStatus();
}

absl::Status check_names(const internal::v1::Submit& submit) {
  if (submit.request_id().size() > kMaxNameBytes) {
    return invalid_field("request_id", "is longer than 256 bytes");
  }
  if (submit.tenant().size() > kMaxNameBytes) {
    return invalid_field("tenant", "is longer than 256 bytes");
  }
  if (submit.prefix_salt().size() > kMaxNameBytes) {
    return invalid_field("prefix_cache.salt", "is longer than 256 bytes");
  }
  if (submit.choice() >= kMaxChoices) {
    return invalid_field("num_choices", absl::StrCat("is more than ", kMaxChoices));
  }
  if (!internal::v1::PrefillMode_IsValid(submit.prefill_mode())) {
    return invalid_field("prefill_mode", absl::StrCat(submit.prefill_mode(), " is no mode"));
  }
  return absl::OkStatus();
}

// "is 1.5; must be in [0, 1)". NaN fails every comparison and so is refused.
absl::Status check_number(absl::string_view field, float value, bool valid,
                          absl::string_view range) {
  if (valid && std::isfinite(value)) return absl::OkStatus();
  return invalid_field(field, absl::StrCat("is ", value, "; must be ", range));
}

absl::Status check_sampling(const internal::v1::Sampling& sampling, const SubmitLimits& limits) {
  const float repetition = sampling.repetition_penalty();
  for (const absl::Status& status : {
           check_number("sampling.temperature", sampling.temperature(), sampling.temperature() >= 0,
                        "finite and not negative"),
           check_number("sampling.top_p", sampling.top_p(),
                        sampling.top_p() > 0 && sampling.top_p() <= 1, "in (0, 1]"),
           check_number("sampling.min_p", sampling.min_p(),
                        sampling.min_p() >= 0 && sampling.min_p() < 1, "in [0, 1)"),
           check_number("sampling.repetition_penalty", repetition, repetition > 0,
                        "finite and above 0"),
           check_number("sampling.presence_penalty", sampling.presence_penalty(), true, "finite"),
           check_number("sampling.frequency_penalty", sampling.frequency_penalty(), true, "finite"),
       }) {
    if (!status.ok()) return status;
  }
  if (sampling.logit_bias().size() > kMaxLogitBiases) {
    return invalid_field("sampling.logit_bias",
                         absl::StrCat("has more than ", kMaxLogitBiases, " entries"));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    const std::vector<uint32_t> ids = {id};
    if (absl::Status status = check_ids(ids, limits, "sampling.logit_bias"); !status.ok()) {
      return status;
    }
    if (!std::isfinite(bias)) {
      return invalid_field("sampling.logit_bias", absl::StrCat("of token ", id, " is not finite"));
    }
  }
  return absl::OkStatus();
}

absl::Status check_logprobs(const internal::v1::Submit& submit, const SubmitLimits& limits) {
  const auto limit = static_cast<uint32_t>(limits.max_logprobs);
  const std::string why = absl::StrCat("is above this server's --max-logprobs of ", limit);
  if (submit.num_logprobs() > limit) return invalid_field("output.num_logprobs", why);
  if (submit.num_prompt_logprobs() > limit) {
    return invalid_field("output.num_prompt_logprobs", why);
  }
  return absl::OkStatus();
}

absl::Status check_lengths(const internal::v1::Submit& submit, const SubmitLimits& limits) {
  if (submit.prompt().empty()) return invalid_field("prompt", "is empty");
  const int64_t left = int64_t{limits.max_context} - submit.prompt_size();
  const bool only_scored = submit.has_max_new_tokens() && submit.max_new_tokens() == 0;
  if (left < (only_scored ? 0 : 1)) {
    return invalid_field("prompt",
                         absl::StrCat("of ", submit.prompt_size(), " tokens",
                                      only_scored ? "" : " and one generated token",
                                      " does not fit the context of ", limits.max_context));
  }
  if (submit.stop_token_ids_size() > kMaxStopTokenIds) {
    return invalid_field("stopping.stop_token_ids",
                         absl::StrCat("has more than ", kMaxStopTokenIds, " entries"));
  }
  const int64_t max_new =
      submit.has_max_new_tokens() ? std::min<int64_t>(submit.max_new_tokens(), left) : left;
  if (submit.has_max_new_tokens() && submit.min_new_tokens() > submit.max_new_tokens()) {
    return invalid_field("stopping.min_new_tokens", "is above max_new_tokens");
  }
  if (submit.resumed_size() > max_new) {
    return invalid_field("resume.choices.ids",
                         absl::StrCat("has ", submit.resumed_size(), " tokens; no more than ",
                                      max_new, " may be generated"));
  }
  return absl::OkStatus();
}

SamplingSpec sampling_spec(const internal::v1::Submit& submit) {
  const internal::v1::Sampling& from = submit.sampling();
  SamplingSpec spec;
  spec.temperature = from.temperature();
  spec.top_k = from.top_k();
  spec.top_p = from.top_p();
  spec.min_p = from.min_p();
  spec.repetition_penalty = from.repetition_penalty();
  spec.presence_penalty = from.presence_penalty();
  spec.frequency_penalty = from.frequency_penalty();
  for (const auto& [id, bias] : from.logit_bias()) {
    spec.logit_bias.emplace_back(static_cast<int32_t>(id), bias);
  }
  std::sort(spec.logit_bias.begin(), spec.logit_bias.end());
  spec.seed = from.seed();
  spec.choice = submit.choice();
  return spec;
}

PrefillMode prefill_mode(const internal::v1::Submit& submit, const SubmitLimits& limits) {
  if (!limits.has_cyclic_groups) return PrefillMode::kExact;
  switch (submit.prefill_mode()) {
    case internal::v1::PREFILL_MODE_EXACT:
      return PrefillMode::kExact;
    case internal::v1::PREFILL_MODE_ITERATED:
      return PrefillMode::kIterated;
    default:
      return limits.default_prefill_mode;
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const SequenceSpec>> check_submit(const internal::v1::Submit& submit,
                                                                 const SubmitLimits& limits) {
  for (const absl::Status& status : {
           check_names(submit),
           check_lengths(submit, limits),
           check_ids(submit.prompt(), limits, "prompt"),
           check_ids(submit.resumed(), limits, "resume.choices.ids"),
           check_ids(submit.stop_token_ids(), limits, "stopping.stop_token_ids"),
           check_sampling(submit.sampling(), limits),
           check_logprobs(submit, limits),
       }) {
    if (!status.ok()) return status;
  }
  auto spec = std::make_shared<SequenceSpec>();
  spec->prefill_mode = prefill_mode(submit, limits);
  if (spec->prefill_mode == PrefillMode::kIterated &&
      submit.prompt_size() > limits.max_iterated_prompt) {
    return invalid_field("prefill_mode",
                         absl::StrCat("a prompt of ", submit.prompt_size(), " tokens exceeds the ",
                                      limits.max_iterated_prompt,
                                      " staging rows that an iterated prompt needs at once"));
  }
  spec->request_id = submit.request_id();
  if (parse_traceparent(submit.traceparent())) spec->traceparent = submit.traceparent();
  spec->tenant = submit.tenant();
  spec->prefix_salt = submit.prefix_salt();
  spec->skip_prefix_cache = submit.skip_prefix_cache();
  spec->priority = submit.priority();
  spec->continued = submit.resumed_size() > 0;
  spec->prompt.assign(submit.prompt().begin(), submit.prompt().end());
  spec->resumed.assign(submit.resumed().begin(), submit.resumed().end());
  spec->sampling = sampling_spec(submit);
  const int32_t left = limits.max_context - submit.prompt_size();
  spec->max_is_context =
      !submit.has_max_new_tokens() || submit.max_new_tokens() > static_cast<uint32_t>(left);
  spec->max_new_tokens =
      spec->max_is_context ? left : static_cast<int32_t>(submit.max_new_tokens());
  spec->min_new_tokens =
      static_cast<int32_t>(std::min<uint32_t>(submit.min_new_tokens(), spec->max_new_tokens));
  if (!submit.ignore_eos()) spec->eos_token_ids = limits.eos_token_ids;
  spec->stop_token_ids.assign(submit.stop_token_ids().begin(), submit.stop_token_ids().end());
  std::sort(spec->stop_token_ids.begin(), spec->stop_token_ids.end());
  if (submit.has_num_logprobs()) spec->num_logprobs = submit.num_logprobs();
  if (submit.has_num_prompt_logprobs()) spec->num_prompt_logprobs = submit.num_prompt_logprobs();
  return std::shared_ptr<const SequenceSpec>(std::move(spec));
}

}  // namespace lckv
