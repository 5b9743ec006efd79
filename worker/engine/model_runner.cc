#include "worker/engine/model_runner.h"

#include <algorithm>
#include <array>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/engine/device_kv.h"
#include "worker/engine/range_inputs.h"
#include "worker/engine/sampler.h"
#include "worker/engine/stopwatch.h"
#include "worker/engine/walk_rows.h"

namespace lckv {
namespace {

// A step's results are kept for plans made before they were committed: more than are ever made.
constexpr uint64_t kStepsKept = 4;
constexpr int kMaxLaunched = 2;
// Log-probabilities of a step that the host need not wait for before the step's end.
constexpr size_t kLogprobBytes = 1 << 20;
constexpr int64_t kLogitBytes = 64 << 20;
constexpr int64_t kLogitRowsMin = 16;

// Rows whose logits are there at once.
int64_t num_logit_rows(const RunnerOptions& options, const Model& model) {
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * model.vocabulary_size();
  return std::min<int64_t>(std::max(kLogitBytes / row_bytes, kLogitRowsMin),
                           options.max_batched_rows);
}

}  // namespace

class ModelRunner::Impl {
 public:
  Impl(RunnerOptions options, PassPlan passes, std::unique_ptr<Model> model,
       std::unique_ptr<Ops> ops, std::unique_ptr<Collectives> ranks)
      : options_(std::move(options)),
        passes_(std::move(passes)),
        ops_(std::move(ops)),
        ranks_(std::move(ranks)),
        model_(std::move(model)),
        logit_rows_(num_logit_rows(options_, *model_)),
        sampler_({.max_num_seqs = options_.max_num_seqs,
                  .max_rows = static_cast<int32_t>(logit_rows_),
                  .vocabulary = model_->vocabulary_size()},
                 *ops_) {
    LCKV_CHECK(options_.max_batched_rows > 0);
    LCKV_CHECK(options_.max_batched_rows <= model_->max_rows());
  }

  // Recorded batches name memory, and ways to other ranks, that go now. Not all of it goes without
  // the device, and who ends the engine need not have used it.
  ~Impl() {
    if (ops_ == nullptr) return;
    ops_->enter_thread();
    ops_->forget_batches();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  absl::Status allocate();
  // Nothing but the destructor comes after this.
  Parts take_parts() {
    ops_->forget_batches();
    return {std::move(ops_), std::move(ranks_), std::move(model_)};
  }
  void set_before_layer(std::function<void()> hook) { before_layer_ = std::move(hook); }
  int max_launched() const { return ops_->returns_early() ? kMaxLaunched : 1; }
  absl::Status launch(const StepPlan& plan, StepTimes& times);
  absl::StatusOr<StepResult> collect(StepTimes& times);

 private:
  // A step that was launched, and was collected or not.
  struct Launched {
    uint64_t step = 0;
    std::unique_ptr<StepResults> results;
    std::vector<GroupRows> walks;                   // [group]
    std::vector<ResultSpan<KvDistance>> distances;  // [group]
    ResultSpan<int32_t> ids;                        // of the plan's samples
    size_t first_logprobs = 0;                      // where they begin in the results
    std::vector<Draw> draws;                        // not read yet
    std::vector<SampleResult> samples;              // of those that were
  };
  Launched& begin(const StepPlan& plan);
  absl::Status run(const StepPlan& plan, Launched& step, StepTimes& times);
  void change_seats(const StepPlan& plan);
  absl::Status run_ranges(const StepPlan& plan, Launched& step, StepTimes& times);
  absl::Status run_ordinary(const StepPlan& plan, int32_t index);
  absl::StatusOr<ResultSpan<KvDistance>> run_walk(const StepPlan& plan, int32_t group,
                                                  StepResults& results);
  absl::Status embed(const StepPlan& plan);
  TokenId resolve(const PlanToken& token);
  absl::Status sample(const StepPlan& plan, Launched& step, StepTimes& times);
  absl::Status compute_logits(std::span<const SampleRow> rows);
  // Rows whose logits are there, of the plan's samples from `begin` on: in as many draws as it
  // takes to have room for their log-probabilities.
  absl::Status draw(std::span<const SampleRow> rows, size_t begin, Launched& step);
  absl::Status read_before(const Launched& step);
  // Waits for what was sent, and reads the draws.
  absl::Status read(Launched& step);
  absl::Status named(const absl::Status& status, uint64_t step) const {
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat("rank ", ranks_->rank(), ", step ", step, ", ",
                                                    status.message()));
  }
  Launched& launched(uint64_t step) { return steps_[step % kStepsKept]; }
  void add_ids(PlanSpan staged) {
    ids_.insert(ids_.end(), staging_.begin() + staged.begin,
                staging_.begin() + staged.begin + staged.count);
  }

  const RunnerOptions options_;
  const PassPlan passes_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Collectives> ranks_;
  std::unique_ptr<Model> model_;
  const int64_t logit_rows_;
  Sampler sampler_;
  std::unique_ptr<DeviceKv> kv_;
  std::unique_ptr<RangeInputs> inputs_;
  std::unique_ptr<WalkRows> walk_rows_;

  std::function<void()> before_layer_ = [] {};
  uint64_t last_step_ = 0;  // launched
  uint64_t num_collected_ = 0;
  std::array<Launched, kStepsKept> steps_;
  std::vector<TokenId> tokens_;                // that are embedded
  std::vector<int32_t> staging_;               // the plan's, as numbers
  std::vector<int32_t> ids_;                   // rows that the next call is about
  std::unique_ptr<DeviceBuffer> hidden_;       // [max_batched_rows, hidden]
  std::unique_ptr<DeviceBuffer> last_hidden_;  // [logit_rows, hidden]: rows whose logits are needed
  std::unique_ptr<DeviceBuffer> logits_;       // [logit_rows, vocabulary]
};

absl::Status ModelRunner::Impl::allocate() {
  auto kv = DeviceKv::create(options_, passes_, model_->hidden_size(), *ops_);
  if (!kv.ok()) return kv.status();
  kv_ = *std::move(kv);
  inputs_ = std::make_unique<RangeInputs>(options_, passes_, *kv_, *ops_);
  walk_rows_ = std::make_unique<WalkRows>(options_, passes_, *ops_, *kv_, *ranks_);
  ids_.reserve(options_.max_batched_rows);
  const size_t hidden_bytes = sizeof(float) * model_->hidden_size();
  const size_t logit_bytes = sizeof(float) * model_->vocabulary_size();
  hidden_ = ops_->allocate(hidden_bytes * options_.max_batched_rows);
  last_hidden_ = ops_->allocate(hidden_bytes * logit_rows_);
  logits_ = ops_->allocate(logit_bytes * logit_rows_);
  size_t result_bytes = StepResults::bytes_of<int32_t>(options_.max_batched_rows) +
                        std::max(kLogprobBytes, Sampler::max_row_bytes(model_->vocabulary_size()));
  for (int32_t group = 0; group < passes_.num_groups(); ++group) {
    result_bytes += walk_rows_->max_result_bytes(group);
  }
  for (Launched& step : steps_) step.results = std::make_unique<StepResults>(result_bytes, *ops_);
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::launch(const StepPlan& plan, StepTimes& times) {
  LCKV_CHECK(plan.step == last_step_ + 1);
  LCKV_CHECK(plan.step <= num_collected_ + static_cast<uint64_t>(max_launched()));
  last_step_ = plan.step;
  ops_->enter_thread();
  return named(run(plan, begin(plan), times), plan.step);
}

ModelRunner::Impl::Launched& ModelRunner::Impl::begin(const StepPlan& plan) {
  Launched& step = launched(plan.step);
  step.step = plan.step;
  step.results->go_back(0);
  step.walks = plan.groups;
  step.distances.clear();
  step.ids = step.results->take<int32_t>(plan.samples.size());
  step.draws.clear();
  step.samples.clear();
  return step;
}

absl::Status ModelRunner::Impl::run(const StepPlan& plan, Launched& step, StepTimes& times) {
  LCKV_CHECK(static_cast<int32_t>(plan.groups.size()) == passes_.num_groups());
  LCKV_CHECK(plan.ordinary.size() == plan.groups.size() + 1);
  {
    const Stopwatch watch(times.copies);
    kv_->change(plan);
    change_seats(plan);
  }
  staging_.clear();
  for (const StagingRow row : plan.staging) staging_.push_back(raw(row));
  if (absl::Status status = run_ranges(plan, step, times); !status.ok()) return status;
  if (absl::Status status = sample(plan, step, times); !status.ok()) return status;
  step.results->send();
  return absl::OkStatus();
}

absl::StatusOr<StepResult> ModelRunner::Impl::collect(StepTimes& times) {
  LCKV_CHECK(num_collected_ < last_step_);
  const Stopwatch watch(times.sample);
  Launched& step = launched(++num_collected_);
  if (absl::Status status = read(step); !status.ok()) return named(status, step.step);
  StepResult result{.step = step.step, .samples = std::move(step.samples)};
  for (size_t group = 0; group < step.walks.size(); ++group) {
    result.settled_rows.push_back(
        WalkRows::count_settled(step.walks[group], step.distances[group].host));
  }
  return result;
}

absl::Status ModelRunner::Impl::read(Launched& step) {
  // Waiting for the device alone would be waiting for a peer unseen.
  absl::Status status = ranks_->wait_for([&step] { return step.results->are_there(); });
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("waiting for ranks before reading results: ",
                                                    status.message()));
  }
  step.results->wait();
  for (const Draw& draw : step.draws) sampler_.read(draw, step.samples);
  step.draws.clear();
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::read_before(const Launched& step) {
  for (uint64_t before = num_collected_ + 1; before < step.step; ++before) {
    if (absl::Status status = read(launched(before)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::run_ranges(const StepPlan& plan, Launched& step, StepTimes& times) {
  for (int32_t index = 0; index <= passes_.num_groups(); ++index) {
    {
      const Stopwatch watch(times.ordinary);
      if (absl::Status status = run_ordinary(plan, index); !status.ok()) return status;
    }
    if (index == passes_.num_groups()) break;
    const Stopwatch watch(times.walks);
    const auto distances = run_walk(plan, index, *step.results);
    if (!distances.ok()) return distances.status();
    step.distances.push_back(*distances);
  }
  return absl::OkStatus();
}

void ModelRunner::Impl::change_seats(const StepPlan& plan) {
  for (const SeatId seat : plan.closed) sampler_.close(seat);
  for (const SeatOpening& opening : plan.opened) sampler_.open(opening, plan.step);
}

TokenId ModelRunner::Impl::resolve(const PlanToken& token) {
  if (token.step == 0) return {.id = token.token};
  const Launched& step = launched(token.step);
  LCKV_CHECK(step.step == token.step);
  LCKV_CHECK(token.sample >= 0 && token.sample < static_cast<int64_t>(step.ids.host.size()));
  return {.drawn = step.ids.device + token.sample};
}

absl::Status ModelRunner::Impl::embed(const StepPlan& plan) {
  tokens_.clear();
  for (const OrdinarySegment& segment : plan.ordinary.front().segments) {
    LCKV_CHECK(segment.tokens.count == segment.num_rows);
    for (int32_t i = 0; i < segment.num_rows; ++i) {
      tokens_.push_back(resolve(plan.tokens.at(segment.tokens.begin + i)));
    }
  }
  return model_->embed(tokens_, hidden_->floats());
}

absl::Status ModelRunner::Impl::run_ordinary(const StepPlan& plan, int32_t index) {
  const RangeRows& rows = plan.ordinary[index];
  if (rows.num_rows == 0) return absl::OkStatus();
  LCKV_CHECK(rows.num_rows <= options_.max_batched_rows);
  const int64_t hidden_size = model_->hidden_size();
  if (index == 0) {
    if (absl::Status status = embed(plan); !status.ok()) return status;
  } else {
    ids_.clear();
    for (const OrdinarySegment& segment : rows.segments) add_ids(segment.inputs);
    ops_->gather_rows(kv_->output(index - 1), ids_, hidden_size, hidden_->floats());
  }
  if (passes_.ordinary[index].num_layers() > 0) {
    RangeBatch batch = inputs_->ordinary(index, rows, hidden_->floats());
    batch.before_layer = &before_layer_;
    absl::Status status = model_->run(batch);
    if (!status.ok()) return status;
  }
  if (index == passes_.num_groups()) return absl::OkStatus();
  ids_.clear();
  for (const OrdinarySegment& segment : rows.segments) add_ids(segment.outputs);
  ops_->scatter_rows(hidden_->floats(), ids_, hidden_size, kv_->input(index));
  return absl::OkStatus();
}

absl::StatusOr<ResultSpan<KvDistance>> ModelRunner::Impl::run_walk(const StepPlan& plan,
                                                                   int32_t group,
                                                                   StepResults& results) {
  const GroupRows& rows = plan.groups[group];
  if (rows.num_rows == 0) return ResultSpan<KvDistance>();
  LCKV_CHECK(rows.num_rows <= options_.max_batched_rows);
  const int64_t hidden_size = model_->hidden_size();
  walk_rows_->clear_new(group, rows, staging_);
  const RangeBatch warm = inputs_->warm_rows(group, rows, staging_, hidden_->floats());
  if (warm.num_rows() > 0) {
    ops_->gather_rows(kv_->input(group), warm.staged_rows, hidden_size, warm.hidden);
    model_->guess(warm);
  }
  RangeBatch batch = inputs_->walk(group, rows, staging_, hidden_->floats());
  batch.before_layer = &before_layer_;
  const auto staged_rows = batch.staged_rows.first(rows.num_rows);
  ops_->gather_rows(kv_->input(group), staged_rows, hidden_size, batch.hidden);
  if (absl::Status status = model_->run(batch); !status.ok()) return status;
  ops_->scatter_rows(batch.hidden, staged_rows, hidden_size, kv_->output(group));
  return walk_rows_->end(group, rows, staging_, results);
}

absl::Status ModelRunner::Impl::sample(const StepPlan& plan, Launched& step, StepTimes& times) {
  const std::span<const SampleRow> all = plan.samples;
  step.first_logprobs = step.results->here();
  for (size_t begin = 0; begin < all.size(); begin += logit_rows_) {
    const auto rows = all.subspan(begin, std::min<size_t>(logit_rows_, all.size() - begin));
    {
      const Stopwatch watch(times.logits);
      if (absl::Status status = compute_logits(rows); !status.ok()) return status;
    }
    const Stopwatch watch(times.sample);
    if (sampler_.need_tokens(rows)) {
      if (absl::Status status = read_before(step); !status.ok()) return status;
    }
    if (absl::Status status = draw(rows, begin, step); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::draw(std::span<const SampleRow> rows, size_t begin,
                                     Launched& step) {
  for (size_t at = 0, count = 0; at < rows.size(); at += count) {
    count = sampler_.count_rows(rows.subspan(at), step.results->room());
    if (count == 0) {
      step.results->send();
      if (absl::Status status = read(step); !status.ok()) return status;
      step.results->go_back(step.first_logprobs);
      count = sampler_.count_rows(rows.subspan(at), step.results->room());
    }
    float* const logits = logits_->floats() + static_cast<int64_t>(at) * model_->vocabulary_size();
    step.draws.push_back(sampler_.draw(step.step, rows.subspan(at, count), logits,
                                       step.ids.subspan(begin + at, count), *step.results));
  }
  return absl::OkStatus();
}

absl::Status ModelRunner::Impl::compute_logits(std::span<const SampleRow> rows) {
  ids_.clear();
  for (const SampleRow& row : rows) ids_.push_back(row.row);
  ops_->gather_rows(hidden_->floats(), ids_, model_->hidden_size(), last_hidden_->floats());
  return model_->logits(last_hidden_->floats(), static_cast<int64_t>(ids_.size()),
                        logits_->floats());
}

ModelRunner::ModelRunner() = default;
ModelRunner::~ModelRunner() = default;

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::create(
    RunnerOptions options, PassPlan passes, std::unique_ptr<Model> model, std::unique_ptr<Ops> ops,
    std::unique_ptr<Collectives> ranks) {
  try {
    std::unique_ptr<ModelRunner> runner(new ModelRunner());
    runner->impl_ = std::make_unique<Impl>(std::move(options), std::move(passes), std::move(model),
                                           std::move(ops), std::move(ranks));
    if (absl::Status status = runner->impl_->allocate(); !status.ok()) return status;
    return runner;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("not enough memory for a step's buffers");
  }
}

ModelRunner::Parts ModelRunner::take_apart(std::unique_ptr<ModelRunner> runner) {
  return runner->impl_->take_parts();
}

void ModelRunner::set_before_layer(std::function<void()> hook) {
  impl_->set_before_layer(std::move(hook));
}

int ModelRunner::max_launched() const { return impl_->max_launched(); }

absl::Status ModelRunner::launch(const StepPlan& plan, StepTimes& times) {
  return impl_->launch(plan, times);
}

absl::StatusOr<StepResult> ModelRunner::collect(StepTimes& times) { return impl_->collect(times); }

}  // namespace lckv
