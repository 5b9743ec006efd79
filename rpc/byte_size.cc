#include "rpc/byte_size.h"

#include <array>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lckv {
namespace {

struct Unit {
  absl::string_view name;
  uint64_t bytes;
};

constexpr std::array<Unit, 10> kUnits = {{
    {"", 1},
    {"B", 1},
    {"KiB", uint64_t{1} << 10},
    {"MiB", uint64_t{1} << 20},
    {"GiB", uint64_t{1} << 30},
    {"TiB", uint64_t{1} << 40},
    {"kB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"TB", 1'000'000'000'000},
}};

}  // namespace

absl::StatusOr<uint64_t> parse_byte_size(absl::string_view text) {
  const absl::Status wrong = absl::InvalidArgumentError(
      absl::StrCat("\"", text.substr(0, 64), "\" is no size; write one like 4GiB or 512MiB"));
  text = absl::StripAsciiWhitespace(text);
  size_t digits = 0;
  while (digits < text.size() && (absl::ascii_isdigit(text[digits]) || text[digits] == '.')) {
    ++digits;
  }
  const absl::string_view number = text.substr(0, digits);
  const absl::string_view name = absl::StripLeadingAsciiWhitespace(text.substr(digits));
  for (const Unit& unit : kUnits) {
    if (!absl::EqualsIgnoreCase(unit.name, name)) continue;
    uint64_t whole = 0;
    if (absl::SimpleAtoi(number, &whole)) {
      if (whole > UINT64_MAX / unit.bytes) return wrong;
      return whole * unit.bytes;
    }
    double fraction = 0;
    if (unit.bytes == 1 || !absl::SimpleAtod(number, &fraction)) return wrong;
    const double bytes = std::floor(fraction * static_cast<double>(unit.bytes));
    if (!(bytes < 18446744073709551616.0)) return wrong;
    return static_cast<uint64_t>(bytes);
  }
  return wrong;
}

std::string format_byte_size(uint64_t bytes) {
  for (const absl::string_view name : {"TiB", "GiB", "MiB", "KiB"}) {
    for (const Unit& unit : kUnits) {
      if (unit.name != name || bytes < unit.bytes) continue;
      const double value = static_cast<double>(bytes) / static_cast<double>(unit.bytes);
      return bytes % unit.bytes == 0 ? absl::StrCat(bytes / unit.bytes, " ", name)
                                     : absl::StrFormat("%.2f %s", value, name);
    }
  }
  return absl::StrCat(bytes, " B");
}

}  // namespace lckv
