#include "tests/bench/lines.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"

namespace lckv {
namespace {

int num_met = 0;
int num_missed = 0;
bool judging = true;

}  // namespace

void leave_goals_out() { judging = false; }

void print_heading(absl::string_view text) {
  absl::PrintF("\n%s\n", text);
  std::fflush(stdout);
}

void print(const Measurement& m) {
  absl::PrintF("  %-58s %10.2f %-9s", m.what, m.value, m.unit);
  double judged = m.value;
  if (!m.limit_name.empty()) {
    judged = m.value / m.limit;
    absl::PrintF(" = %6.3f of %s (%.2f)", judged, m.limit_name, m.limit);
  }
  if (judging && m.goal.kind != Goal::Kind::kNone) {
    const bool met =
        m.goal.kind == Goal::Kind::kAtLeast ? judged >= m.goal.bound : judged <= m.goal.bound;
    (met ? num_met : num_missed) += 1;
    absl::PrintF("  goal %s %g: %s",
                 m.goal.kind == Goal::Kind::kAtLeast ? ">=" : "<=", m.goal.bound,
                 met ? "met" : "missed");
  }
  absl::PrintF("\n");
  std::fflush(stdout);
}

void print_summary() {
  if (judging) absl::PrintF("\n%d goals met, %d missed\n", num_met, num_missed);
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace lckv
