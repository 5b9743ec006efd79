#include "worker/model/bounded_file.h"

#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "worker/model/mapped_memory.h"

namespace lckv {

absl::StatusOr<std::string> read_bounded_file(const std::string& path, size_t max_bytes) {
  auto memory = MappedMemory::map_file(path);
  if (!memory.ok()) return memory.status();
  const auto bytes = memory->bytes();
  if (bytes.size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than ", max_bytes, " bytes"));
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

bool file_exists(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0;
}

}  // namespace lckv
