// Token ids to text as they come, never giving half a character.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "router/text/tokenizer.h"

namespace lckv {

// Invariant: what push() gave so far plus finish() is decode() of all ids, and each piece is valid
// UTF-8. A byte becomes U+FFFD only once no later byte can make it part of a character. Owned by
// one choice of one call; the vocabulary must outlive it.
class StreamDetokenizer {
 public:
  explicit StreamDetokenizer(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}

  // The text that is certain after `id` and was not before.
  std::string push(uint32_t id);
  // What an unfinished character at the end leaves.
  std::string finish();

 private:
  void take_byte(char byte, std::string& text);
  void flush(std::string& text);
  void take_text(absl::string_view bytes, std::string& text);

  const Vocabulary* vocabulary_;
  std::string partial_;   // the beginning of a character, at most 3 bytes
  bool at_start_ = true;  // nothing but dropped spaces has come
};

std::string decode(const Vocabulary& vocabulary, absl::Span<const uint32_t> ids);

}  // namespace lckv
