// What `lckv bench` draws of its figures.
#pragma once

#include <string>

#include "client/bench_report.h"

namespace lckv {

// An SVG document: how latencies are distributed, over a logarithmic scale, and the tokens that
// arrived in each second.
std::string bench_svg(const BenchReport& report);

}  // namespace lckv
