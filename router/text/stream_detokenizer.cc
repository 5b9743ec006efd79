#include "router/text/stream_detokenizer.h"

#include "kernels/check.h"
#include "router/text/utf8.h"

namespace lckv {

std::string StreamDetokenizer::push(uint32_t id) {
  const Vocabulary::Entry& entry = vocabulary_->entry(id);
  std::string text;
  if (entry.kind == Vocabulary::Kind::kByte && !entry.bytes.empty()) {
    take_byte(entry.bytes[0], text);
    return text;
  }
  // Bytes of one character stand side by side: any other token ends the run.
  flush(text);
  if (entry.kind == Vocabulary::Kind::kText) take_text(entry.bytes, text);
  if (entry.kind == Vocabulary::Kind::kVerbatim) {
    text += entry.bytes;
    at_start_ = at_start_ && entry.bytes.empty();
  }
  return text;
}

std::string StreamDetokenizer::finish() {
  std::string text;
  flush(text);
  return text;
}

void StreamDetokenizer::take_byte(char byte, std::string& text) {
  partial_ += byte;
  at_start_ = false;
  while (!partial_.empty()) {
    const Utf8Prefix prefix = utf8_prefix(partial_);
    if (prefix.state == Utf8State::kPartial) break;
    if (prefix.state == Utf8State::kWhole) {
      text.append(partial_, 0, prefix.bytes);
    } else {
      text += kReplacement;
    }
    partial_.erase(0, prefix.bytes);
  }
  LCKV_CHECK(partial_.size() < 4);
}

void StreamDetokenizer::flush(std::string& text) {
  text += to_valid_utf8(partial_);
  partial_.clear();
}

void StreamDetokenizer::take_text(absl::string_view bytes, std::string& text) {
  if (at_start_ && vocabulary_->drops_first_space && !bytes.empty() && bytes[0] == ' ') {
    bytes.remove_prefix(1);
    at_start_ = vocabulary_->drops_all_first_spaces && bytes.empty();
  } else if (!bytes.empty()) {
    at_start_ = false;
  }
  text.append(bytes.data(), bytes.size());
}

std::string decode(const Vocabulary& vocabulary, absl::Span<const uint32_t> ids) {
  StreamDetokenizer detokenizer(vocabulary);
  std::string text;
  for (const uint32_t id : ids) text += detokenizer.push(id);
  text += detokenizer.finish();
  return text;
}

}  // namespace lckv
