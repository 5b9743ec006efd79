// Equality: what every equality test shares: layer maps, number formats, a mixed workload, and
// running it.
//
// Reproducible mode throughout: equal means bit for bit, in tokens and in the logits they were
// drawn from.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/local_replica.h"

namespace lckv {

struct EqualityCase {
  std::string model;  // folder of a checkpoint
  DType dtype = DType::kFloat32;

  friend std::ostream& operator<<(std::ostream& out, const EqualityCase& c) {
    return out << c.model << " in " << dtype_name(c.dtype);
  }
};

// Layer maps: ordinary, w2, w0, two groups, sandwich-middle, sliding, CLA; each in every format
// that the program's reproducible backends have.
std::vector<EqualityCase> layer_maps();
// The trained model of 8 layers, in the format it is served in.
std::vector<EqualityCase> demo_model();
std::string case_name(const testing::TestParamInfo<EqualityCase>& info);

class Equality : public testing::TestWithParam<EqualityCase> {
 protected:
  void SetUp() override;
  // Reproducible, enough memory for everything. Tolerance 0.
  LocalOptions options() const;
  // What a server uses by default: 2^-9 for bfloat16, 2^-12 for float16, 0 for float32.
  float default_tolerance() const;
  bool has_cycles() const;

  // Mixed lengths, prefill modes, greedy and sampled, with and without penalties; all of it from
  // `seed`.
  std::vector<SequenceSpec> workload(uint64_t seed) const;
  // Submitted all at once; run to the end.
  std::vector<Transcript> together(const LocalOptions& options,
                                   const std::vector<SequenceSpec>& specs) const;
  // Each in a replica that serves nobody else, and afterwards holds nothing.
  std::vector<Transcript> alone(const LocalOptions& options,
                                const std::vector<SequenceSpec>& specs) const;
};

void expect_equal(const std::vector<Transcript>& a, const std::vector<Transcript>& b);
// A replica that must open.
std::unique_ptr<LocalReplica> open_replica(const LocalOptions& options);
// All memory is free again.
void expect_empty(const LocalReplica& replica, const SchedulerLoad& at_start);

}  // namespace lckv
