// How wide the rows of products are on the device. Constexpr: tested without one.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace lckv {

// k with zeros up to whole chunks of 16 bytes: rows of weights and of x begin at multiples of it.
constexpr int64_t chunked_k(DType dtype, int64_t k) {
  const int64_t chunk = 16 / static_cast<int64_t>(dtype_bytes(dtype));
  return (k + chunk - 1) / chunk * chunk;
}

}  // namespace lckv
