#include "tests/kernels/emulated_cuda/device_memory.h"

#include <sys/mman.h>

#include "kernels/check.h"

namespace emulated_cuda {

void* Memory::allocate(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const size_t length = rounded(bytes, kPage);
  used_ += length;
  void* const base =
      mmap(nullptr, length + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  // So that a step too far leaves it, the piece ends where its page does.
  void* const begin = static_cast<std::byte*>(base) + (length - rounded(bytes, kAlignment));
  pieces_[begin] = {base, length};
  allow(pieces_[begin]);
  return begin;
}

void Memory::free(void* begin) {
  if (begin == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto piece = pieces_.find(begin);
  LCKV_CHECK(piece != pieces_.end());
  used_ -= piece->second.length;
  // No other piece gets its addresses: who still uses one is found out.
  const auto [base, length] = piece->second;
  LCKV_CHECK(mmap(base, length + kPage, PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == base);
  pieces_.erase(piece);
}

bool Memory::holds(const void* at) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto piece = pieces_.upper_bound(const_cast<void*>(at));
  if (piece == pieces_.begin()) return false;
  --piece;
  return at < static_cast<std::byte*>(piece->second.base) + piece->second.length;
}

size_t Memory::used() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return used_;
}

size_t Memory::size(void* begin) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return pieces_.at(begin).length;
}

void Memory::open() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (++num_open_ > 1) return;
  for (const auto& [begin, piece] : pieces_) allow(piece);
}

void Memory::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--num_open_ > 0) return;
  for (const auto& [begin, piece] : pieces_) allow(piece);
}

void Memory::allow(const Piece& piece) const {
  const int mode = num_open_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE;
  LCKV_CHECK(mprotect(piece.base, piece.length, mode) == 0);
}

Memory& memory() {
  static Memory& memory = *new Memory();
  return memory;
}

}  // namespace emulated_cuda
