// StepCost: how long a device takes for a step, by the roofline model (Williams, Waterman and
// Patterson, 2009): a layer takes as long as its bytes or its arithmetic, whichever is longer.
//
// A pure function of the plan. What it leaves out: caches, the shape of a product, other work on
// the device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "kernels/dtype.h"
#include "worker/engine/step_runner.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model_config.h"
#include "worker/sim/device_profile.h"

namespace lckv {

struct StepCostOptions {
  DType dtype = DType::kBFloat16;
  int32_t num_ranks = 1;
  int64_t block_bytes = 0;
};

class StepCost {
 public:
  // `passes` are one rank's.
  StepCost(const DeviceProfile& device, const ModelConfig& model, const PassPlan& passes,
           const StepCostOptions& options);

  // By phase, summed into `times`.
  void add(const StepPlan& plan, StepTimes& times) const;
  // Bytes of a rank's weights.
  double weight_bytes() const { return weight_bytes_; }

 private:
  // Layers of a range that cost the same.
  struct Layers {
    int32_t num_layers = 0;
    double parameters = 0;  // of the matrices of one layer, on one rank
    int32_t window = 0;
    int32_t num_sinks = 0;
    double kv_bytes_per_token = 0;
    double flops_per_row_and_token = 0;  // of attention
  };
  // Rows of one sequence.
  struct Rows {
    int64_t first_position = 0;
    int64_t count = 0;
  };
  std::vector<Layers> layers_of(const ModelConfig& model, const LayerPlan& plan,
                                LayerRange range) const;
  absl::Duration time_of(const std::vector<Layers>& range, const std::vector<Rows>& rows) const;
  absl::Duration time_of(const Layers& layers, const std::vector<Rows>& rows) const;
  absl::Duration collective(double bytes) const;
  double seconds(double bytes, double flops) const;

  const DeviceProfile device_;
  const StepCostOptions options_;
  const double bytes_per_number_;
  const int32_t hidden_size_;
  const double head_parameters_;  // of the vocabulary's matrix, on one rank
  const double logit_bytes_;      // of one row, all ranks
  double weight_bytes_ = 0;
  std::vector<std::vector<Layers>> ranges_;  // in the order they run
};

}  // namespace lckv
