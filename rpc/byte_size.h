// Sizes as users write them: "4GiB", "512MiB", "1.5GB", "4096".
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lckv {

// Bytes. Units: none or B, KiB MiB GiB TiB (powers of 1024), kB MB GB TB (powers of 1000), in any
// case; a decimal fraction is allowed before a unit and rounds down. InvalidArgument says what was
// expected.
absl::StatusOr<uint64_t> parse_byte_size(absl::string_view text);

// The largest binary unit that leaves at least one whole, with up to two decimals: "1.50 GiB", "512
// B".
std::string format_byte_size(uint64_t bytes);

}  // namespace lckv
