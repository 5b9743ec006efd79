#include "router/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  for (const std::string& stop : stops_) LCKV_CHECK(!stop.empty());
}

StopMatcher::Found StopMatcher::push(absl::string_view piece, bool armed) {
  const size_t seen = held_.size();
  held_.append(piece.data(), piece.size());
  Found found;
  size_t match_begin = 0;
  size_t match_end = std::string::npos;
  for (size_t i = 0; armed && i < stops_.size(); ++i) {
    // A match that ends within what was seen before would have been found then.
    const size_t from = seen + 1 > stops_[i].size() ? seen + 1 - stops_[i].size() : 0;
    const size_t begin = held_.find(stops_[i], from);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stops_[i].size();
    if (end < match_end || (end == match_end && begin < match_begin)) {
      match_begin = begin;
      match_end = end;
      found.stop_index = static_cast<int>(i);
    }
  }
  const size_t keep_from = found.stop_index >= 0 ? (include_stop_ ? match_end : match_begin)
                                                 : held_.size() - bytes_to_hold();
  found.text = held_.substr(0, keep_from);
  if (found.stop_index >= 0) {
    held_.clear();
  } else {
    held_.erase(0, keep_from);
  }
  return found;
}

std::string StopMatcher::finish() { return std::exchange(held_, std::string()); }

// The longest end of the text that a stop string begins with.
size_t StopMatcher::bytes_to_hold() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > longest; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

}  // namespace lckv
