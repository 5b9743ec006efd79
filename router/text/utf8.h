// Recognising UTF-8, a character at a time.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace lckv {

inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8State {
  kWhole,    // a valid character begins here
  kPartial,  // what is here is the beginning of at least one valid character, and all there is
  kInvalid,  // no continuation makes the first byte part of a character
};

struct Utf8Prefix {
  Utf8State state;
  size_t bytes;  // of the character where kWhole; 1 where kInvalid; all of them where kPartial
};

// What `bytes` (not empty) begins with. Overlong forms, surrogates and values above U+10FFFF are
// invalid.
Utf8Prefix utf8_prefix(absl::string_view bytes);

// Each byte that is part of no valid character becomes U+FFFD.
std::string to_valid_utf8(absl::string_view bytes);

}  // namespace lckv
