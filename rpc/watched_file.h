// Small files that others replace while a server runs: expected models, tenants, tokens.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace lckv {

// The whole content. Errors name the path: NotFound, or FailedPrecondition where it cannot be read
// or holds more than 1 MiB.
absl::StatusOr<std::string> read_small_file(const std::string& path);

// Compares contents, so that it sees every way to replace a file: in place, by renaming, or, as
// Kubernetes does with mounted secrets, by pointing a symbolic link above it elsewhere.
// Owner: whoever polls it; one thread.
class WatchedFile {
 public:
  explicit WatchedFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  // What is there now, where it is not what the last answer said; an error is an answer too, and is
  // given once. The first call always answers.
  std::optional<absl::StatusOr<std::string>> poll();

 private:
  const std::string path_;
  std::optional<absl::StatusOr<std::string>> last_;
};

}  // namespace lckv
