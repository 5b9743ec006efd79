// MappedMemory: a file mapped read-only, or anonymous memory; unmapped when dropped. Movable value,
// no threads.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace lckv {

class MappedMemory {
 public:
  // Errors: NotFound, PermissionDenied or the like, naming the path; InvalidArgument where it is no
  // regular file.
  static absl::StatusOr<MappedMemory> map_file(const std::string& path);
  // Zeros. ResourceExhausted where the memory cannot be had. Sparse: only what is written to will
  // take memory, far less than `bytes`.
  static absl::StatusOr<MappedMemory> allocate(size_t bytes, bool is_sparse = false);

  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  ~MappedMemory();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::byte* writable();  // of allocate() only
  bool contains(const std::byte* address) const {
    return address >= data_ && address < data_ + size_;
  }
  // Reads [begin, begin + size) ahead, as far as there is memory for it.
  void will_need(const std::byte* begin, size_t size) const;
  // Drops what lies wholly within [begin, begin + size) from memory.
  void forget(const std::byte* begin, size_t size) const;

 private:
  MappedMemory(std::byte* data, size_t size, bool is_writable)
      : data_(data), size_(size), is_writable_(is_writable) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool is_writable_ = false;
};

}  // namespace lckv
