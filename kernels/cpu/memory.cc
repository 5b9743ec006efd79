#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include "kernels/check.h"

namespace lckv {

AnonymousMemory::AnonymousMemory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  LCKV_CHECK(memory != MAP_FAILED);
  constexpr size_t kHuge = size_t{2} << 20;
  if (bytes >= kHuge) (void)madvise(memory, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(memory);
}

AnonymousMemory::~AnonymousMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace lckv
