#include "rpc/watched_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

constexpr size_t kMaxBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::string> read_small_file(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
  }
  std::string content(kMaxBytes + 1, '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (file.bad()) return absl::FailedPreconditionError(absl::StrCat(path, ": cannot be read"));
  content.resize(static_cast<size_t>(file.gcount()));
  if (content.size() > kMaxBytes) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": holds more than 1 MiB"));
  }
  return content;
}

std::optional<absl::StatusOr<std::string>> WatchedFile::poll() {
  absl::StatusOr<std::string> now = read_small_file(path_);
  if (last_ && last_->status() == now.status() && (!now.ok() || **last_ == *now)) {
    return std::nullopt;
  }
  last_ = now;
  return now;
}

}  // namespace lckv
