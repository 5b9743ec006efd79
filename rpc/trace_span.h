// W3C Trace Context (Level 1): the `traceparent` of a caller, and those that we pass on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace lckv {

struct TraceSpan {
  std::string trace_id;  // 32 lower-case hexadecimal digits
  std::string span_id;   // 16
  uint8_t flags = 0;     // bit 0: sampled
};

// Nothing where it is not one, as the standard wants it: it is then ignored. Of versions later than
// 00 what is known is taken.
std::optional<TraceSpan> parse_traceparent(absl::string_view text);
std::string to_traceparent(const TraceSpan& span);
// The same trace with a span of its own; `number` is random.
TraceSpan child_of(const TraceSpan& parent, uint64_t number);

}  // namespace lckv
