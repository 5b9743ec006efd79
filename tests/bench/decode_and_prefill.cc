#include "tests/bench/decode_and_prefill.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/time/clock.h"
#include "kernels/check.h"

namespace lckv {

double seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

double quantile(std::vector<double> values, double q) {
  LCKV_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1,
                         static_cast<size_t>(q * static_cast<double>(values.size())))];
}

namespace {

template <class Opened>
Opened or_end(absl::StatusOr<Opened> opened) {
  if (!opened.ok()) {
    std::fprintf(stderr, "%s\n", std::string(opened.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(opened);
}

}  // namespace

std::unique_ptr<Driver> open_driver(const DriverOptions& options) {
  return or_end(Driver::open(options));
}

std::unique_ptr<Ops> open_bench_ops(std::optional<int32_t> cuda_device) {
  // Any model will do.
  return or_end(
      Driver::open_ops({.folder = "tests/bench/models/tinyllama", .cuda_device = cuda_device}));
}

int count_tokens(const Driver::Turn& turn) {
  return static_cast<int>(std::count_if(turn.events.begin(), turn.events.end(), [](const auto& e) {
    return e.kind == SequenceEvent::Kind::kToken;
  }));
}

std::vector<SequenceId> start_streams(Driver& driver, const StreamShape& shape,
                                      int32_t max_new_tokens) {
  std::vector<SequenceId> ids;
  for (const auto& prompt : made_up_prompts(driver, shape.batch, shape.prompt_tokens)) {
    ids.push_back(driver.submit(prompt, max_new_tokens));
  }
  int decoding = 0;
  const uint64_t preempted = driver.load().num_preemptions;
  driver.set_idle(shape.has_idle_prompts);
  while (decoding < shape.batch) {
    const Driver::Turn turn = driver.step();
    LCKV_CHECK(driver.load().num_preemptions == preempted);
    decoding = count_tokens(turn);
  }
  driver.set_idle(false);
  // What was launched while idle.
  LCKV_CHECK(count_tokens(driver.step()) == shape.batch);
  return ids;
}

DecodeTimes decode(Driver& driver, const StreamShape& shape, int steps,
                   const std::function<void()>& before) {
  DecodeTimes times;
  // Early ones go on until the last one decodes too.
  const int32_t most = driver.loaded().plan.max_context - shape.prompt_tokens;
  const std::vector<SequenceId> ids = start_streams(driver, shape, most);
  times.tokens = static_cast<double>(driver.load().num_cached_tokens);
  double all = 0;
  double kernels = 0;
  for (int i = 0; i < steps; ++i) {
    const absl::Time began = absl::Now();
    before();
    const Driver::Turn turn = driver.step();
    times.steps.push_back(seconds(absl::Now() - began));
    LCKV_CHECK(count_tokens(turn) == shape.batch);
    all += seconds(turn.time);
    kernels += seconds(turn.kernels);
  }
  times.outside = 1 - kernels / all;
  for (const SequenceId id : ids) driver.cancel(id);
  driver.finish_all();
  return times;
}

std::vector<std::vector<int32_t>> made_up_prompts(const Driver& driver, int count, int length) {
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < count; ++i) {
    prompts.push_back(made_up_prompt(length, driver.loaded().config.vocabulary_size, i));
  }
  return prompts;
}

double prefill(Driver& driver, const std::vector<std::vector<int32_t>>& prompts, int32_t* walks,
               PrefillMode mode) {
  for (const auto& prompt : prompts) driver.submit(prompt, 1, mode);
  double total = 0;
  size_t finished = 0;
  while (finished < prompts.size()) {
    const Driver::Turn turn = driver.step();
    total += seconds(turn.time);
    for (const SequenceEvent& event : turn.events) {
      if (event.kind != SequenceEvent::Kind::kFinished) continue;
      ++finished;
      if (walks != nullptr) *walks = event.num_prefill_walks;
    }
  }
  driver.finish_all();
  return total;
}

size_t step_weight_bytes(const LoadedModel& loaded) {
  const ModelConfig& config = loaded.config;
  const int64_t embedding = int64_t{1} * config.vocabulary_size * config.hidden_size;
  const int64_t read = num_parameters(config) - (config.tie_word_embeddings ? 0 : embedding);
  return static_cast<size_t>(read) * dtype_bytes(loaded.plan.dtype);
}

double prefill_operations(const ModelConfig& config, double tokens) {
  const double embedding = double{1} * config.vocabulary_size * config.hidden_size;
  const double layers = static_cast<double>(num_parameters(config)) -
                        (config.tie_word_embeddings ? 1 : 2) * embedding;
  const double attention = 4.0 * config.num_layers * config.num_heads * config.head_dim;
  return 2 * (layers * tokens + embedding) + attention * tokens * tokens / 2;
}

}  // namespace lckv
