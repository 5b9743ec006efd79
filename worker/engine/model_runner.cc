#include "worker/engine/model_runner.h"

#include <algorithm>
#include <deque>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "worker/engine/device_kv.h"
#include "worker/engine/range_inputs.h"
#include "worker/engine/sampler.h"
#include "worker/engine/walk_rows.h"

namespace lckv {
namespace {

// Sampled ids are kept for the plans made before their step was committed: far fewer than this.
constexpr size_t kStepsKept = 16;
constexpr int64_t kLogitBytes = 64 << 20;
constexpr int64_t kLogitRowsMin = 16;

// Rows whose logits are there at once.
int64_t num_logit_rows(const RunnerOptions& options, const Model& model) {
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * model.vocabulary_size();
  return std::min<int64_t>(std::max(kLogitBytes / row_bytes, kLogitRowsMin),
                           options.max_batched_rows);
}

class Stopwatch {
 public:
  explicit Stopwatch(absl::Duration& total) : total_(total) {}
  ~Stopwatch() { total_ += absl::Now() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  absl::Duration& total_;
  const absl::Time start_ = absl::Now();
};

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

  // Recorded batches name memory, and ways to other ranks, that go now.
  ~Impl() {
    if (ops_ != nullptr) ops_->forget_batches();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  absl::Status allocate();
  // Nothing but the destructor comes after this.
  Parts take_parts() {
    ops_->forget_batches();
    return {std::move(model_), std::move(ops_), std::move(ranks_)};
  }
  void set_before_layer(std::function<void()> hook) { before_layer_ = std::move(hook); }
  absl::StatusOr<StepResult> run(const StepPlan& plan, StepTimes& times);

 private:
  struct Sampled {
    uint64_t step = 0;
    std::vector<int32_t> tokens;
  };
  void change_seats(const StepPlan& plan);
  // Reading what the device computed would wait for a peer unseen.
  absl::Status wait_for_ranks(const char* before) {
    absl::Status status = ranks_->wait();
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("waiting for ranks before ", before, ": ", status.message()));
  }
  absl::Status run_ranges(const StepPlan& plan, StepResult& result, StepTimes& times);
  absl::Status run_ordinary(const StepPlan& plan, int32_t index);
  absl::StatusOr<std::vector<int32_t>> run_walk(const StepPlan& plan, int32_t group);
  absl::Status embed(const StepPlan& plan);
  absl::Status sample(const StepPlan& plan, StepResult& result, StepTimes& times);
  int32_t resolve(const PlanToken& token) const;
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
  uint64_t last_step_ = 0;
  std::deque<Sampled> sampled_;                // of the last steps, ascending
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
  return absl::OkStatus();
}

absl::StatusOr<StepResult> ModelRunner::Impl::run(const StepPlan& plan, StepTimes& times) {
  LCKV_CHECK(plan.step == last_step_ + 1);
  last_step_ = plan.step;
  ops_->enter_thread();
  LCKV_CHECK(static_cast<int32_t>(plan.groups.size()) == passes_.num_groups());
  LCKV_CHECK(plan.ordinary.size() == plan.groups.size() + 1);
  StepResult result{.step = plan.step};
  absl::Status status = plan.to_host.empty() && plan.to_device.empty()
                            ? absl::OkStatus()
                            : wait_for_ranks("copying blocks");
  if (status.ok()) {
    const Stopwatch watch(times.copies);
    kv_->change(plan);
    change_seats(plan);
  }
  staging_.clear();
  for (const StagingRow row : plan.staging) staging_.push_back(raw(row));
  if (status.ok()) status = run_ranges(plan, result, times);
  if (status.ok()) status = sample(plan, result, times);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("rank ", ranks_->rank(), ", step ", plan.step,
                                                    ", ", status.message()));
  }
  return result;
}

absl::Status ModelRunner::Impl::run_ranges(const StepPlan& plan, StepResult& result,
                                           StepTimes& times) {
  for (int32_t index = 0; index <= passes_.num_groups(); ++index) {
    {
      const Stopwatch watch(times.ordinary);
      if (absl::Status status = run_ordinary(plan, index); !status.ok()) return status;
    }
    if (index == passes_.num_groups()) break;
    const Stopwatch watch(times.walks);
    auto settled = run_walk(plan, index);
    if (!settled.ok()) return settled.status();
    result.settled_rows.push_back(*std::move(settled));
  }
  return absl::OkStatus();
}

void ModelRunner::Impl::change_seats(const StepPlan& plan) {
  for (const SeatId seat : plan.closed) sampler_.close(seat);
  for (const SeatOpening& opening : plan.opened) sampler_.open(opening);
}

int32_t ModelRunner::Impl::resolve(const PlanToken& token) const {
  if (token.step == 0) return token.token;
  const auto found = std::find_if(sampled_.begin(), sampled_.end(), [&token](const Sampled& step) {
    return step.step == token.step;
  });
  LCKV_CHECK(found != sampled_.end());
  return found->tokens.at(token.sample);
}

absl::Status ModelRunner::Impl::embed(const StepPlan& plan) {
  ids_.clear();
  for (const OrdinarySegment& segment : plan.ordinary.front().segments) {
    LCKV_CHECK(segment.tokens.count == segment.num_rows);
    for (int32_t i = 0; i < segment.num_rows; ++i) {
      ids_.push_back(resolve(plan.tokens.at(segment.tokens.begin + i)));
    }
  }
  return model_->embed(ids_, hidden_->floats());
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

absl::StatusOr<std::vector<int32_t>> ModelRunner::Impl::run_walk(const StepPlan& plan,
                                                                 int32_t group) {
  const GroupRows& rows = plan.groups[group];
  if (rows.num_rows == 0) return std::vector<int32_t>();
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
  return walk_rows_->end(group, rows, staging_);
}

absl::Status ModelRunner::Impl::sample(const StepPlan& plan, StepResult& result, StepTimes& times) {
  const int64_t hidden_size = model_->hidden_size();
  Sampled sampled{.step = plan.step};
  result.samples.reserve(plan.samples.size());
  for (size_t begin = 0; begin < plan.samples.size(); begin += logit_rows_) {
    const size_t end = std::min(begin + logit_rows_, plan.samples.size());
    {
      const Stopwatch watch(times.logits);
      ids_.clear();
      for (size_t i = begin; i < end; ++i) ids_.push_back(plan.samples[i].row);
      ops_->gather_rows(hidden_->floats(), ids_, hidden_size, last_hidden_->floats());
      absl::Status status = model_->logits(last_hidden_->floats(),
                                           static_cast<int64_t>(ids_.size()), logits_->floats());
      if (status.ok()) status = wait_for_ranks("sampling");
      if (!status.ok()) return status;
    }
    const Stopwatch watch(times.sample);
    const auto rows = std::span(plan.samples).subspan(begin, end - begin);
    for (SampleResult& sample : sampler_.draw(rows, logits_->floats())) {
      sampled.tokens.push_back(sample.token);
      result.samples.push_back(std::move(sample));
    }
  }
  sampled_.push_back(std::move(sampled));
  if (sampled_.size() > kStepsKept) sampled_.pop_front();
  return absl::OkStatus();
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

absl::StatusOr<StepResult> ModelRunner::run(const StepPlan& plan, StepTimes& times) {
  return impl_->run(plan, times);
}

}  // namespace lckv
