// The bench's output: one line a measurement, with the limit it is a part of and the goal it has.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace lckv {

struct Goal {
  enum class Kind { kNone, kAtLeast, kAtMost };
  Kind kind = Kind::kNone;
  double bound = 0;
};

inline Goal at_least(double bound) { return {Goal::Kind::kAtLeast, bound}; }
inline Goal at_most(double bound) { return {Goal::Kind::kAtMost, bound}; }

struct Measurement {
  std::string what;
  double value = 0;
  std::string unit;
  std::string limit_name;  // empty: the value stands for itself
  double limit = 0;        // in the same unit
  Goal goal;               // of value / limit, or of the value where there is no limit
};

// Small models say nothing about goals: from here on none is judged.
void leave_goals_out();
void print_heading(absl::string_view text);
void print(const Measurement& measurement);
// "12 goals met, 1 missed"
void print_summary();
// The upper one of an even number; there is one at least.
double median(std::vector<double> values);

}  // namespace lckv
