#include "rpc/trace_span.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lckv {
namespace {

constexpr size_t kTraceIdAt = 3;
constexpr size_t kSpanIdAt = 36;
constexpr size_t kFlagsAt = 53;
constexpr size_t kSize = 55;

bool is_hex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
  });
}

bool is_id(absl::string_view text) {
  return is_hex(text) && text.find_first_not_of('0') != absl::string_view::npos;
}

}  // namespace

std::optional<TraceSpan> parse_traceparent(absl::string_view text) {
  if (text.size() < kSize) return std::nullopt;
  const absl::string_view version = text.substr(0, 2);
  const absl::string_view trace_id = text.substr(kTraceIdAt, 32);
  const absl::string_view span_id = text.substr(kSpanIdAt, 16);
  const absl::string_view flags = text.substr(kFlagsAt, 2);
  const bool separated = text[2] == '-' && text[kSpanIdAt - 1] == '-' && text[kFlagsAt - 1] == '-';
  const bool ends = text.size() == kSize || (version != "00" && text[kSize] == '-');
  if (!separated || !ends || !is_hex(version) || version == "ff" || !is_id(trace_id) ||
      !is_id(span_id) || !is_hex(flags)) {
    return std::nullopt;
  }
  const std::string digits(flags);
  return TraceSpan{.trace_id = std::string(trace_id),
                   .span_id = std::string(span_id),
                   .flags = static_cast<uint8_t>(std::stoi(digits, nullptr, 16))};
}

std::string to_traceparent(const TraceSpan& span) {
  return absl::StrCat("00-", span.trace_id, "-", span.span_id, "-",
                      absl::StrFormat("%02x", span.flags));
}

TraceSpan child_of(const TraceSpan& parent, uint64_t number) {
  return {.trace_id = parent.trace_id,
          .span_id = absl::StrFormat("%016x", std::max<uint64_t>(number, 1)),
          // Of later versions' flags nothing is known.
          .flags = static_cast<uint8_t>(parent.flags & 1)};
}

}  // namespace lckv
