// MemoryFile: what a library wants to read from a file, at a path that leads into memory.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lckv {

// Owner: whoever writes it; one thread. Whoever opens path() reads one content as a whole. It stays
// when this object goes: nobody tells when the last reader is gone, and the path must not come to
// lead to another file.
class MemoryFile {
 public:
  MemoryFile() = default;
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  absl::Status write(const std::string& content);
  // After the first write.
  std::string path() const;

 private:
  int descriptor_ = -1;
  int64_t num_writes_ = 0;
};

}  // namespace lckv
