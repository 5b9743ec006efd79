// What this machine can do, measured in the same run as what is compared with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lckv::bench {

// A buffer that is read with vector loads by `threads` threads.
class MemoryReads {
 public:
  MemoryReads(size_t bytes, int threads);
  ~MemoryReads();
  MemoryReads(const MemoryReads&) = delete;
  MemoryReads& operator=(const MemoryReads&) = delete;

  // Reads all of it once; bytes per second.
  double read();

 private:
  const size_t bytes_;
  const int threads_;
  void* const memory_;
};

struct ProductShape {
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// FLOP per second of oneDNN's bfloat16 products, the best over the shapes.
double product_peak(const std::vector<ProductShape>& shapes, int threads);

}  // namespace lckv::bench
