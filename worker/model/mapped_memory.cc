#include "worker/model/mapped_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace lckv {
namespace {

uintptr_t align_down(uintptr_t address, uintptr_t to) { return address & ~(to - 1); }

absl::StatusOr<std::span<std::byte>> map_descriptor(int descriptor, const std::string& path) {
  struct stat info = {};
  if (fstat(descriptor, &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return std::span<std::byte>();  // nothing can be mapped of it
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, path);
  return std::span(static_cast<std::byte*>(data), size);
}

}  // namespace

absl::StatusOr<MappedMemory> MappedMemory::map_file(const std::string& path) {
  // Without O_NONBLOCK a pipe in a checkpoint's place would hold the open up for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, path);
  auto mapped = map_descriptor(descriptor, path);
  ::close(descriptor);
  if (!mapped.ok()) return mapped.status();
  return MappedMemory(mapped->data(), mapped->size(), /*is_writable=*/false);
}

absl::StatusOr<MappedMemory> MappedMemory::allocate(size_t bytes, bool is_sparse) {
  LCKV_CHECK(bytes > 0);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (is_sparse ? MAP_NORESERVE : 0);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of weights"));
  }
  return MappedMemory(static_cast<std::byte*>(data), bytes, /*is_writable=*/true);
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      is_writable_(other.is_writable_) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(is_writable_, other.is_writable_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

std::byte* MappedMemory::writable() {
  LCKV_CHECK(is_writable_);
  return data_;
}

void MappedMemory::will_need(const std::byte* begin, size_t size) const {
  LCKV_CHECK(size <= size_ && begin >= data_ &&
             begin - data_ <= static_cast<ptrdiff_t>(size_ - size));
  const auto unit = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = align_down(address, unit);
  madvise(reinterpret_cast<void*>(first), address + size - first, MADV_WILLNEED);
}

void MappedMemory::forget(const std::byte* begin, size_t size) const {
  LCKV_CHECK(size <= size_ && begin >= data_ &&
             begin - data_ <= static_cast<ptrdiff_t>(size_ - size));
  const auto unit = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = align_down(address + unit - 1, unit);
  const uintptr_t last = align_down(address + size, unit);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace lckv
