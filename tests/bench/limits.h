// What this machine can do, measured in the same run as what is compared with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lckv::bench {

// Bytes per second of reading a buffer of that size with `threads` threads: the best of five runs
// of vector loads.
double read_bandwidth(size_t bytes, int threads);

struct ProductShape {
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// FLOP per second of oneDNN's bfloat16 products, the best over the shapes.
double product_peak(const std::vector<ProductShape>& shapes, int threads);

}  // namespace lckv::bench
