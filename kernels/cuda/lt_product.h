// Matrix products by cuBLASLt, in the free mode: its kernel may depend on the number of rows.
#pragma once

#include <memory>

#include "kernels/cuda/row_product.h"

namespace lckv {

// Owner: the CUDA backend. Thread: its caller's. Keeps the algorithm that cuBLASLt's heuristics
// chose for each shape ever asked for.
class LtProducts {
 public:
  explicit LtProducts(cudaStream_t stream);
  ~LtProducts();

  // False, and nothing done, where cuBLASLt has no algorithm for the shape.
  bool multiply(const ProductArgs& args);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
