// The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes.
//
// A header comes from outside and is believed in nothing: every number is checked against the file
// before it is used, and nothing is allocated by what it claims.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"

namespace lckv {

constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // "BF16"
  std::optional<DType> dtype;  // absent where it is one we do not compute with
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in the file, not in the data section
  uint64_t end = 0;
};

// Entries by ascending begin, which do not overlap. Errors: InvalidArgument, one line naming
// `file_name` and the tensor.
absl::StatusOr<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                                absl::string_view file_name);

}  // namespace lckv
