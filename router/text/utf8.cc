#include "router/text/utf8.h"

#include <cstdint>

#include "kernels/check.h"

namespace lckv {
namespace {

struct LeadByte {
  size_t length = 0;  // 0: leads nothing
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

// The well-formed byte sequences of the Unicode standard, table 3-7.
LeadByte lead_byte(uint8_t byte) {
  if (byte < 0x80) return {.length = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.length = 2};
  if (byte == 0xE0) return {.length = 3, .second_min = 0xA0};
  if (byte == 0xED) return {.length = 3, .second_max = 0x9F};
  if (byte < 0xF0) return {.length = 3};
  if (byte == 0xF0) return {.length = 4, .second_min = 0x90};
  if (byte < 0xF4) return {.length = 4};
  if (byte == 0xF4) return {.length = 4, .second_max = 0x8F};
  return {};
}

}  // namespace

Utf8Prefix utf8_prefix(absl::string_view bytes) {
  LCKV_CHECK(!bytes.empty());
  const LeadByte lead = lead_byte(static_cast<uint8_t>(bytes[0]));
  if (lead.length == 0) return {Utf8State::kInvalid, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8State::kPartial, bytes.size()};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : 0x80;
    const uint8_t max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8State::kInvalid, 1};
  }
  return {Utf8State::kWhole, lead.length};
}

std::string to_valid_utf8(absl::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const Utf8Prefix prefix = utf8_prefix(bytes);
    if (prefix.state == Utf8State::kWhole) {
      text.append(bytes.data(), prefix.bytes);
      bytes.remove_prefix(prefix.bytes);
    } else {
      text += kReplacement;
      bytes.remove_prefix(1);
    }
  }
  return text;
}

}  // namespace lckv
