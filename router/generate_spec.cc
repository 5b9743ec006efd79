#include "router/generate_spec.h"

#include "kernels/check.h"

namespace lckv {

internal::v1::Submit make_submit(const GenerateSpec& spec, uint32_t choice,
                                 const std::vector<uint32_t>& ids) {
  LCKV_CHECK(choice < spec.choices.size());
  internal::v1::Submit submit;
  submit.set_request_id(spec.request_id);
  submit.set_traceparent(spec.traceparent);
  submit.set_tenant(spec.tenant);
  submit.set_priority(spec.priority);
  submit.set_choice(choice);
  submit.mutable_prompt()->Add(spec.prompt.begin(), spec.prompt.end());
  submit.mutable_resumed()->Add(ids.begin(), ids.end());
  internal::v1::Sampling& sampling = *submit.mutable_sampling();
  sampling.set_temperature(spec.sampling.temperature());
  sampling.set_top_k(spec.sampling.top_k());
  sampling.set_top_p(spec.sampling.top_p());
  sampling.set_min_p(spec.sampling.min_p());
  sampling.set_repetition_penalty(spec.sampling.repetition_penalty());
  sampling.set_presence_penalty(spec.sampling.presence_penalty());
  sampling.set_frequency_penalty(spec.sampling.frequency_penalty());
  *sampling.mutable_logit_bias() = spec.sampling.logit_bias();
  sampling.set_seed(spec.sampling.seed());
  if (spec.max_new_tokens) submit.set_max_new_tokens(*spec.max_new_tokens);
  submit.set_min_new_tokens(spec.min_new_tokens);
  submit.mutable_stop_token_ids()->Add(spec.stop_token_ids.begin(), spec.stop_token_ids.end());
  submit.set_ignore_eos(spec.ignore_eos);
  if (spec.num_logprobs) submit.set_num_logprobs(*spec.num_logprobs);
  // Once per call, and not again for a caller who has tokens already: the prompt's come before
  // them.
  if (spec.num_prompt_logprobs && choice == 0 && ids.empty()) {
    submit.set_num_prompt_logprobs(*spec.num_prompt_logprobs);
  }
  submit.set_prefill_mode(spec.prefill_mode);
  submit.set_skip_prefix_cache(spec.skip_prefix_cache);
  submit.set_prefix_salt(spec.prefix_salt);
  return submit;
}

}  // namespace lckv
