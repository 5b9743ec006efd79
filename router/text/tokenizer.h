// Text to token ids, and the table by which ids become text again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

// What each token id contributes to a text. Immutable, any thread.
struct Vocabulary {
  enum class Kind : uint8_t {
    kText,      // its bytes, which are whole characters
    kVerbatim,  // as kText, but its leading space is its own: the sign for unknown text
    kByte,      // one byte of a character
    kControl,   // nothing: begin, end, padding
  };
  struct Entry {
    Kind kind = Kind::kControl;
    std::string
        bytes;  // empty for kControl; valid UTF-8 for kText, where a word's space is a space
  };

  std::vector<Entry> entries;
  // A text begins without the space that its first word carries.
  bool drops_first_space = false;
  // It drops the spaces of all tokens before the first that gives anything else.
  bool drops_all_first_spaces = false;
  size_t max_entry_bytes = 1;

  // Ids beyond the table (padding of the embedding) contribute nothing.
  const Entry& entry(uint32_t id) const;
};

// A model's own tokenizer. Immutable, any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // With the special tokens that the model's tokenizer adds to a prompt; "" gives these alone.
  virtual absl::StatusOr<std::vector<uint32_t>> encode(const std::string& text) const = 0;
  virtual const Vocabulary& vocabulary() const = 0;
};

struct TokenizerFiles {
  std::string sentencepiece_model;  // the bytes of tokenizer.model
  std::string config_json;          // tokenizer_config.json, may be empty
  // The checkpoint's own, where it names them; negative: what the tokenizer's model says.
  int64_t bos_token_id = -1;
  int64_t eos_token_id = -1;
};

// InvalidArgument says which file is broken.
absl::StatusOr<std::shared_ptr<const Tokenizer>> load_tokenizer(const TokenizerFiles& files);

}  // namespace lckv
