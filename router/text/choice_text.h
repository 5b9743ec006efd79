// The text of one choice: ids in, text that may be sent out, stop strings watched.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router/text/stop_matcher.h"
#include "router/text/stream_detokenizer.h"
#include "router/text/tokenizer.h"

namespace lckv {

struct ChoiceTextOptions {
  std::vector<std::string> stop_strings;
  bool include_stop = false;
  uint32_t min_new_tokens =
      0;  // a stop string that is complete before so many tokens does not count
};

// Owned by one choice of one call; the vocabulary must outlive it.
class ChoiceText {
 public:
  ChoiceText(const Vocabulary& vocabulary, ChoiceTextOptions options);

  // The text that became certain. After a match (stop_index() >= 0) nothing more may be pushed.
  std::string push(uint32_t id);
  // What was held back, when the choice ends for another reason. It may still complete a stop
  // string.
  std::string finish();
  // Of the stop string found; negative: none.
  int stop_index() const { return stop_index_; }

 private:
  std::string match(const std::string& text);

  StreamDetokenizer detokenizer_;
  StopMatcher matcher_;
  const uint32_t min_new_tokens_;
  uint32_t num_tokens_ = 0;
  int stop_index_ = -1;
};

}  // namespace lckv
