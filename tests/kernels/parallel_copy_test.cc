#include "kernels/cuda/parallel_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace lckv {
namespace {

TEST(CopyInParallel, CopiesAllAndNothingMore) {
  constexpr size_t kMiB = size_t{1} << 20;
  for (const size_t bytes :
       {size_t{0}, size_t{1}, kMiB, 2 * kMiB + 1, 3 * kMiB - 1, 11 * kMiB + 7}) {
    std::vector<std::byte> from(bytes);
    for (size_t i = 0; i < bytes; ++i) from[i] = static_cast<std::byte>(i * 2654435761U >> 13);
    std::vector<std::byte> to(bytes + 16, std::byte{0x5A});
    copy_in_parallel(from.data(), to.data(), bytes);
    EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin())) << bytes;
    EXPECT_TRUE(std::all_of(to.begin() + static_cast<ptrdiff_t>(bytes), to.end(),
                            [](std::byte value) { return value == std::byte{0x5A}; }))
        << bytes;
  }
}

}  // namespace
}  // namespace lckv
