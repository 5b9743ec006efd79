// Small files, read whole. Private to worker/model.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace lckv {

// Errors name the path: NotFound, InvalidArgument (larger than `max_bytes`, no regular file), or as
// errno says.
absl::StatusOr<std::string> read_bounded_file(const std::string& path, size_t max_bytes);

bool file_exists(const std::string& path);

}  // namespace lckv
