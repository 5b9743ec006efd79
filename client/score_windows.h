// How `lckv score` cuts a text into windows. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace lckv {

struct WindowOptions {
  size_t context = 0;  // tokens of a window, the prefix included
  size_t stride = 0;  // ids from one window's start to the next; 0: a whole window, without overlap
  size_t prefix = 0;  // special tokens put before each window
};

struct ScoreWindow {
  size_t begin = 0;  // of the text's ids
  size_t end = 0;
  size_t first_scored = 0;  // ids before it were scored by the window before
};

// Whole windows only: what is left at the end is dropped, unless the text is shorter than one
// window, which then is the window. Without a prefix the first id of a text cannot be predicted and
// is not scored.
absl::StatusOr<std::vector<ScoreWindow>> cut_windows(size_t num_ids, const WindowOptions& options);

}  // namespace lckv
