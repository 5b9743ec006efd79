// NaivePlanner: one sequence, token by token, without a scheduler: the slow reference of what any
// schedule of exact prefill and decode must give.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/local_runner.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

class NaivePlanner {
 public:
  // `local` has served nobody and must outlive it; each planner takes its seat 0 for itself.
  explicit NaivePlanner(LocalRunner& local) : local_(local) {}

  // Feeds one token at the next position; gives the logits of what follows it.
  std::vector<float> feed(int32_t token);
  // A row of keys or values that was fed.
  std::vector<float> kv(UnitId unit, int32_t position, bool values) const;

 private:
  StepPlan plan(int32_t token);

  LocalRunner& local_;
  int32_t position_ = 0;
  int32_t num_blocks_ = 0;
  std::vector<std::vector<int32_t>> tables_;  // per unit
};

}  // namespace lckv
