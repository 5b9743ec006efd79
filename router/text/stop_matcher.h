// Stop strings in a text that arrives in pieces.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace lckv {

// Of all occurrences the one that ends first is the match; of those that end together the one that
// begins first. How the text is cut into pieces does not matter. Only text that could still be part
// of a match is held back. Owned by one choice of one call; needs at most 16 stop strings of 256
// bytes, so it searches plainly.
class StopMatcher {
 public:
  struct Found {
    std::string
        text;  // now certain to come before any match; behind the match with include_stop too
    int stop_index = -1;  // of the match; negative: none so far
  };

  // None of `stops` is empty.
  StopMatcher(std::vector<std::string> stops, bool include_stop);

  // After a match nothing more may be pushed. `armed` false: the text is looked at, because a match
  // may begin in it, but none may end in it.
  Found push(absl::string_view piece, bool armed);
  // The text held back, when the end has come without a match.
  std::string finish();

 private:
  size_t bytes_to_hold() const;

  const std::vector<std::string> stops_;
  const bool include_stop_;
  std::string held_;
};

}  // namespace lckv
