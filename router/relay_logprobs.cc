// The relay's part that turns columns of logprobs into events.
#include <algorithm>
#include <utility>

#include "router/relay.h"

namespace lckv {

void Relay::take_prompt_logprobs(const internal::v1::PromptLogprobs& prompt) {
  v1::GenerateEvent event;
  size_t bytes = 0;
  for (int i = 0; i < prompt.logprobs_size(); ++i) {
    const size_t position = size_t{prompt.position()} + static_cast<size_t>(i);
    if (position >= spec_.prompt.size()) break;
    // A choice that moved before its first token is scored again.
    if (position < num_prompt_logprobs_) continue;
    num_prompt_logprobs_ = static_cast<uint32_t>(position) + 1;
    if (bytes > options_.event_bytes) {
      push(0, std::exchange(event, v1::GenerateEvent()));
      bytes = 0;
    }
    if (bytes == 0) event.mutable_prompt_logprobs()->set_position(static_cast<uint32_t>(position));
    v1::TokenLogprobs& entry = *event.mutable_prompt_logprobs()->add_logprobs();
    fill_logprobs(prompt.logprobs(i), spec_.prompt[position], entry);
    bytes += entry.ByteSizeLong();
  }
  if (bytes > 0) push(0, std::move(event));
}

void Relay::fill_logprobs(const internal::v1::Logprobs& from, uint32_t id,
                          v1::TokenLogprobs& to) const {
  const Vocabulary* vocabulary =
      spec_.model->tokenizer ? &spec_.model->tokenizer->vocabulary() : nullptr;
  to.set_id(id);
  if (from.has_own()) to.set_logprob(from.own());
  if (vocabulary) to.set_token(vocabulary->entry(id).bytes);
  const int count = std::min(from.top_ids_size(), from.top_logprobs_size());
  to.mutable_top()->Reserve(count);
  for (int i = 0; i < count; ++i) {
    v1::TopLogprob& top = *to.add_top();
    top.set_id(from.top_ids(i));
    top.set_logprob(from.top_logprobs(i));
    if (vocabulary) top.set_token(vocabulary->entry(from.top_ids(i)).bytes);
  }
}

}  // namespace lckv
