#include "worker/scheduler/lookahead_cost.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace lckv {
namespace {

// Row-walks per settled row at a given look-ahead, measured on the demo model (8 layers, one group
// of 6 reading the layer above, 512 held-out tokens, tolerance 2^-9, walks started from the warm
// guess where marked):
//
//   look-ahead      4     16     64 warm   512 warm
//   walks           207   63     16        2
//   row-walks/row   1.6   2.0    2.0       2.0
//
// One row a walk is 1 by definition. Between the points work is linear in log2 of the look-ahead.
struct Measured {
  float log2_lookahead;
  float work;
};
constexpr std::array<Measured, 4> kMeasured = {Measured{0.0F, 1.0F}, Measured{2.0F, 1.6F},
                                               Measured{4.0F, 2.0F}, Measured{9.0F, 2.0F}};

// What a step costs besides its rows, in rows.
constexpr float kStepRows = 2.0F;

// A step with prompt rows takes at most this much longer than the decoding sequences' own: what
// they wait is felt at each token, what the prompts wait once.
constexpr float kLongestStep = 4.0F / 3.0F;

float work_per_row(int32_t lookahead) {
  const float at = std::log2(static_cast<float>(lookahead));
  for (size_t i = 1; i < kMeasured.size(); ++i) {
    const Measured& low = kMeasured[i - 1];
    const Measured& high = kMeasured[i];
    if (at > high.log2_lookahead) continue;
    const float share = (at - low.log2_lookahead) / (high.log2_lookahead - low.log2_lookahead);
    return low.work + share * (high.work - low.work);
  }
  return kMeasured.back().work;
}

float step_time(const LookaheadLoad& load, int32_t num_rows) {
  return kStepRows + static_cast<float>(std::max(load.free_rows, num_rows));
}

// What all prompts and all decoding sequences wait, summed, until each prompt has one row more: the
// prompts wait for whole steps, the decoding ones for what their steps take longer.
float cost(const LookaheadLoad& load, int32_t lookahead) {
  const float settled = static_cast<float>(lookahead) / work_per_row(lookahead);
  const float alone = step_time(load, load.num_decoding_rows);
  const float shared = step_time(load, load.num_decoding_rows + load.num_prompts * lookahead);
  return (static_cast<float>(load.num_prompts) * shared +
          static_cast<float>(load.num_decoding_rows) * (shared - alone)) /
         settled;
}

// Of each prompt, beside decoding sequences.
int32_t most_rows(const LookaheadLoad& load) {
  if (load.num_decoding_rows == 0) return load.rows_left;
  const float longest = kLongestStep * step_time(load, load.num_decoding_rows);
  const auto num_rows = static_cast<int32_t>(longest - kStepRows) - load.num_decoding_rows;
  return std::clamp(num_rows / load.num_prompts, 1, load.rows_left);
}

}  // namespace

int32_t choose_lookahead(const LookaheadLoad& load) {
  LCKV_CHECK(load.rows_left > 0 && load.num_prompts > 0);
  const int32_t most = most_rows(load);
  const int32_t free_share =
      std::max(1, (load.free_rows - load.num_decoding_rows) / load.num_prompts);
  // Bitwise settling moves about two rows a walk whatever the look-ahead: only free rows are worth
  // it.
  if (load.tolerance <= 0.0F) return std::min(free_share, most);
  int32_t best = 1;
  float least = std::numeric_limits<float>::max();
  const auto consider = [&](int32_t lookahead) {
    const float at = cost(load, lookahead);
    if (at < least) {
      least = at;
      best = lookahead;
    }
  };
  for (int32_t lookahead = 1; lookahead < most; lookahead *= 2) consider(lookahead);
  consider(std::min(free_share, most));
  consider(most);
  return best;
}

}  // namespace lckv
