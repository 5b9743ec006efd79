#include "kernels/cuda/parallel_copy.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace lckv {
namespace {

// What is worth a thread, and as many as keep an NVMe drive busy.
constexpr size_t kPartBytes = size_t{1} << 20;
constexpr size_t kMaxThreads = 8;

}  // namespace

void copy_in_parallel(const std::byte* from, std::byte* to, size_t bytes) {
  const size_t parts = std::clamp<size_t>(bytes / kPartBytes, 1, kMaxThreads);
  const size_t each = (bytes + parts - 1) / parts;
  const auto copy = [&](size_t part) {
    const size_t begin = part * each;
    const size_t end = std::min(begin + each, bytes);
    if (begin < end) std::memcpy(to + begin, from + begin, end - begin);
  };
  std::vector<std::jthread> others;
  for (size_t part = 1; part < parts; ++part) others.emplace_back(copy, part);
  copy(0);
}

}  // namespace lckv
