// The slow, plain Ops that every backend is compared with: single-threaded float loops, weights and
// KV rounded to any format.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace lckv {

std::unique_ptr<Ops> open_reference_ops(DType dtype);

}  // namespace lckv
