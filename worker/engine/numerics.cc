#include "worker/engine/numerics.h"

#include "absl/strings/str_cat.h"

namespace lckv {

std::string describe_numerics(const Ops& ops, const NumericsOptions& options) {
  std::string text = absl::StrCat(ops.numerics(), ";", dtype_name(ops.dtype()),
                                  ";tolerance=", options.prefill_tolerance);
  // Elsewhere the window follows the load.
  if (options.reproducible) {
    absl::StrAppend(&text, ";reproducible;lookahead=", options.prefill_lookahead);
  }
  if (options.official_decode) absl::StrAppend(&text, ";official-decode");
  if (options.tensor_parallel_size > 1) {
    absl::StrAppend(&text, ";tensor-parallel=", options.tensor_parallel_size);
  }
  return text;
}

}  // namespace lckv
