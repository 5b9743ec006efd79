// What this machine can do at best: the limits that everything else is a fraction of.
#pragma once

#include <cstdint>
#include <vector>

namespace lckv {

// Bytes a second that all threads together read from a buffer of `bytes`; the best of five.
double read_bandwidth(int64_t bytes);

struct MatmulShape {
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// Operations a second (a multiply and an add are two) of oneDNN's bfloat16 product, at its best shape.
double matmul_peak(const std::vector<MatmulShape>& shapes);

// Whether a process may use AMX tiles here.
bool has_amx();

}  // namespace lckv
