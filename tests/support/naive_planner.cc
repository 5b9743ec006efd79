#include "tests/support/naive_planner.h"

#include <memory>

#include "kernels/check.h"

namespace lckv {

StepPlan NaivePlanner::plan(int32_t token) {
  const PassPlan& passes = local_.passes;
  constexpr SeatId kSeat{0};
  StepPlan plan{.step = static_cast<uint64_t>(position_) + 1};
  if (position_ == 0) {
    tables_.resize(passes.num_units());
    auto spec = std::make_shared<SequenceSpec>();
    spec->sampling.temperature = 0.0F;
    plan.opened.push_back({.seat = kSeat, .spec = std::move(spec)});
  }
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    if (position_ % local_.geometry.slots_per_block[u] != 0) continue;
    tables_[u].push_back(num_blocks_);
    plan.appends.push_back({.seat = kSeat, .unit = UnitId{u}, .block = BlockId{num_blocks_++}});
  }
  plan.tokens = {{.token = token}};
  plan.staging = {StagingRow{0}};
  constexpr PlanSpan kOne{.begin = 0, .count = 1};
  for (int32_t k = 0; k <= passes.num_groups(); ++k) {
    plan.ordinary.push_back({.segments = {{.seat = kSeat,
                                           .first_position = position_,
                                           .num_rows = 1,
                                           .tokens = kOne,
                                           .inputs = kOne,
                                           .outputs = kOne}},
                             .num_rows = 1});
    if (k == passes.num_groups()) break;
    plan.groups.push_back({.segments = {{.seat = kSeat,
                                         .first_position = position_,
                                         .num_rows = 1,
                                         .staged_position = position_,
                                         .staged = kOne,
                                         .num_new = 1}},
                           .num_rows = 1});
  }
  plan.samples = {{.seat = kSeat, .index = position_, .num_logprobs = 0}};
  return plan;
}

std::vector<float> NaivePlanner::feed(int32_t token) {
  StepTimes times;
  LCKV_CHECK(local_.runner->run(plan(token), times).ok());
  ++position_;
  auto logits = local_.ops->take_logits();
  LCKV_CHECK(logits.size() == 1);
  return logits.front();
}

std::vector<float> NaivePlanner::kv(UnitId unit, int32_t position, bool values) const {
  const int32_t slots = local_.geometry.slots_per_block[raw(unit)];
  return read_slot(local_, unit, tables_[raw(unit)][position / slots], position % slots, values);
}

}  // namespace lckv
