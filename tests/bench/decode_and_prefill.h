// What a driver's model takes to decode and to prefill.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "tests/bench/driver.h"

namespace lckv {

double seconds(absl::Duration duration);
double quantile(std::vector<double> values, double q);

// Ends the program where it cannot be opened.
std::unique_ptr<Driver> open_driver(const DriverOptions& options);
// The same for a device alone: bfloat16, free.
std::unique_ptr<Ops> open_bench_ops(std::optional<int32_t> cuda_device);

int count_tokens(const Driver::Turn& turn);

struct StreamShape {
  int batch = 1;
  int prompt_tokens = 4;
  bool has_idle_prompts = false;  // they take next to no time, and keys and values are zeros
};
// Sequences with their first tokens out; the ids are there to cancel.
std::vector<SequenceId> start_streams(Driver& driver, const StreamShape& shape,
                                      int32_t max_new_tokens);

struct DecodeTimes {
  std::vector<double> steps;  // seconds of each
  double outside = 0;         // share of them outside operations
  double tokens = 0;          // that all streams held at the first of them
};
// `before` is called before every step, and its time counts as the step's.
DecodeTimes decode(
    Driver& driver, const StreamShape& shape, int steps,
    const std::function<void()>& before = [] {});

std::vector<std::vector<int32_t>> made_up_prompts(const Driver& driver, int count, int length);
// Seconds from the submits to the last one's first token; `walks` of the first to finish.
double prefill(Driver& driver, const std::vector<std::vector<int32_t>>& prompts,
               int32_t* walks = nullptr, PrefillMode mode = PrefillMode::kExact);
// Of the weights, what a step reads: rows of an embedding are looked up.
size_t step_weight_bytes(const LoadedModel& loaded);
// Multiplications and additions of a prompt through all layers; logits of one row.
double prefill_operations(const ModelConfig& config, double tokens);

}  // namespace lckv
