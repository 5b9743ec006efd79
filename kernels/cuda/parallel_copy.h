// Copies of what has to be read from files first.
#pragma once

#include <cstddef>

namespace lckv {

// Large copies are made by several threads: of mapped files each takes the page faults of its part,
// so that storage is asked for several parts at once. Returns when all is copied.
void copy_in_parallel(const std::byte* from, std::byte* to, size_t bytes);

}  // namespace lckv
