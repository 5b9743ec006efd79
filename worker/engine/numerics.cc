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
  return text;
}

}  // namespace lckv
