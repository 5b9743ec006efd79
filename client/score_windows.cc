#include "client/score_windows.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lckv {

absl::StatusOr<std::vector<ScoreWindow>> cut_windows(size_t num_ids, const WindowOptions& options) {
  if (options.context < options.prefix + 2) {
    return absl::InvalidArgumentError(absl::StrCat("--context: ", options.context,
                                                   " leaves fewer than two tokens behind ",
                                                   options.prefix, " special ones"));
  }
  const size_t length = options.context - options.prefix;
  const size_t stride = options.stride == 0 ? length : options.stride;
  if (stride > length) {
    return absl::InvalidArgumentError(
        absl::StrCat("--stride: ", stride, " skips tokens; a window holds ", length));
  }
  const size_t unpredicted = options.prefix == 0 ? 1 : 0;
  if (num_ids <= unpredicted) return absl::InvalidArgumentError("the text has no token to score");
  if (num_ids < length) return std::vector<ScoreWindow>{{0, num_ids, unpredicted}};
  std::vector<ScoreWindow> windows;
  for (size_t begin = 0; begin + length <= num_ids; begin += stride) {
    const size_t scored_before = windows.empty() ? 0 : windows.back().end;
    windows.push_back({begin, begin + length, std::max(scored_before, begin + unpredicted)});
  }
  return windows;
}

}  // namespace lckv
