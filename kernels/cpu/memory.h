// Anonymous memory: zeroed, page-aligned, in huge pages where it is large.
#pragma once

#include <cstddef>

namespace lckv {

class AnonymousMemory {
 public:
  // Ends the process where the address space cannot be had: sizes were checked at start.
  explicit AnonymousMemory(size_t bytes);
  ~AnonymousMemory();
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace lckv
