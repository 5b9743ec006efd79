#include "tests/bench/arguments.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_join.h"
#include "worker/config.h"

namespace lckv::bench {
Arguments read_arguments(int argc, char** argv, std::span<const char* const> parts) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string given = argv[i];
    const auto number =
        given == "--device" && i + 1 < argc ? cuda_index(argv[i + 1]) : std::nullopt;
    if (given == "--smoke") {
      arguments.smoke = true;
    } else if (number) {
      arguments.cuda_device = number;
      ++i;
    } else if (arguments.only.empty() &&
               std::find(parts.begin(), parts.end(), given) != parts.end()) {
      arguments.only = given;
    } else {
      std::fprintf(stderr,
                   "%s: wrong argument \"%s\"; valid: --smoke, --device cuda:N, or one of "
                   "%s\n",
                   argv[0], argv[i], absl::StrJoin(parts, ", ").c_str());
      std::exit(2);
    }
  }
  return arguments;
}

}  // namespace lckv::bench
