// What a measurement of a model on a device is told: `[--device cuda:N] [--smoke] [PART]`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace lckv::bench {

struct Arguments {
  std::optional<int32_t> cuda_device;  // of --device cuda:N; absent: the CPU
  bool smoke = false;
  std::string only;  // a part; empty: all of them
};

// Ends the program with exit code 2 and one line where they are wrong.
Arguments read_arguments(int argc, char** argv, std::span<const char* const> parts);

}  // namespace lckv::bench
