#include "router/text/choice_text.h"

#include <utility>

#include "kernels/check.h"

namespace lckv {

ChoiceText::ChoiceText(const Vocabulary& vocabulary, ChoiceTextOptions options)
    : detokenizer_(vocabulary),
      matcher_(std::move(options.stop_strings), options.include_stop),
      min_new_tokens_(options.min_new_tokens) {}

std::string ChoiceText::push(uint32_t id) {
  LCKV_CHECK(stop_index_ < 0);
  ++num_tokens_;
  return match(detokenizer_.push(id));
}

std::string ChoiceText::finish() {
  if (stop_index_ >= 0) return std::string();
  std::string text = match(detokenizer_.finish());
  if (stop_index_ < 0) text += matcher_.finish();
  return text;
}

std::string ChoiceText::match(const std::string& text) {
  StopMatcher::Found found = matcher_.push(text, num_tokens_ >= min_new_tokens_);
  stop_index_ = found.stop_index;
  return std::move(found.text);
}

}  // namespace lckv
