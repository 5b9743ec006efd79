#include "worker/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/check.h"

namespace lckv {

Engine::Engine(EngineOptions options, std::unique_ptr<Scheduler> scheduler,
               std::unique_ptr<StepRunner> runner, StepSink sink)
    : options_(std::move(options)),
      scheduler_(std::move(scheduler)),
      runner_(std::move(runner)),
      progress_(options_.progress == nullptr ? unwatched_ : *options_.progress),
      sink_(std::move(sink)) {
  LCKV_CHECK(scheduler_ != nullptr && runner_ != nullptr && sink_ != nullptr);
  runner_->set_before_layer([this] { before_layer(); });
}

Engine::~Engine() { stop(); }

void Engine::start() {
  LCKV_CHECK(!thread_.joinable());
  thread_ = std::thread([this] { loop(); });
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  posted_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::Status Engine::post(EngineCommand command) {
  {
    const std::lock_guard lock(mutex_);
    if (mailbox_.size() >= options_.max_mailbox) {
      return absl::ResourceExhaustedError("the engine's mailbox is full");
    }
    mailbox_.push_back(std::move(command));
  }
  posted_.notify_one();
  return absl::OkStatus();
}

void Engine::loop() {
  beat_ = absl::Now();
  bool idle = false;  // no step was possible in the last turn: only a command can change that
  std::vector<EngineCommand> commands;
  const auto turn = [&] {
    progress_.begin(last_step_, Operation::kWait);
    return drain(idle ? beat_ : absl::InfinitePast(), commands);
  };
  while (turn()) {
    num_commands_ += commands.size();
    StepReport report = report_now();
    for (EngineCommand& command : commands) apply(command, absl::Now(), report);
    const absl::StatusOr<bool> stepped = step(report);
    if (!stepped.ok()) {
      if (options_.failed) options_.failed(stepped.status());
      return;
    }
    idle = !*stepped;
    const absl::Time now = absl::Now();
    if (idle && commands.empty() && now < beat_) continue;
    last_step_ = report.step;
    report.last_submit = last_submit_;
    report.num_layers = num_layers_;
    report.load = scheduler_->load();
    progress_.enter(Operation::kReport);
    sink_(report);
    beat_ = now + options_.beat_interval;
  }
  // Other ranks have these plans already and wait for our part.
  for (StepReport unseen; !planned_.empty() || !launched_.empty();) {
    absl::Status status = launch_planned(unseen);
    if (status.ok()) status = commit_next(unseen);
    if (status.ok()) continue;
    if (options_.failed) options_.failed(status);
    return;
  }
}

bool Engine::drain(absl::Time deadline, std::vector<EngineCommand>& commands) {
  commands.clear();
  std::unique_lock lock(mutex_);
  const absl::Duration wait = deadline - absl::Now();
  if (wait > absl::ZeroDuration()) {
    posted_.wait_for(lock, absl::ToChronoMicroseconds(wait),
                     [this] { return stopping_ || !mailbox_.empty(); });
  }
  std::swap(commands, mailbox_);
  return !stopping_;
}

void Engine::apply(EngineCommand& command, absl::Time now, StepReport& report) {
  if (auto* submit = std::get_if<SubmitCommand>(&command)) {
    last_submit_ = std::max(last_submit_, submit->sequence);
    absl::Status status = scheduler_->submit(submit->sequence, std::move(submit->spec), now);
    if (!status.ok()) report.refusals.push_back({submit->sequence, std::move(status)});
  } else if (const auto* cancel = std::get_if<CancelCommand>(&command)) {
    scheduler_->cancel(cancel->sequence);
  } else if (const auto* pause = std::get_if<PauseCommand>(&command)) {
    scheduler_->pause(pause->sequence);
  } else {
    scheduler_->unpause(std::get<UnpauseCommand>(command).sequence);
  }
}

StepReport Engine::report_now() const {
  return {.step = last_step_,
          .num_commands = num_commands_,
          .last_submit = last_submit_,
          .num_layers = num_layers_,
          .load = scheduler_->load()};
}

// Before the step: should it end this process, it is known who was in it.
void Engine::report_seats(const StepPlan& plan) {
  if (plan.opened.empty()) return;
  StepReport report = report_now();
  for (const SeatOpening& opening : plan.opened) report.seated.push_back(opening.sequence);
  sink_(report);
}

void Engine::before_layer() {
  ++num_layers_;
  progress_.begin(running_step_, Operation::kRun);
  const absl::Time now = absl::Now();
  if (now < beat_) return;
  sink_(report_now());
  beat_ = now + options_.beat_interval;
}

absl::StatusOr<bool> Engine::step(StepReport& report) {
  const absl::Time start = absl::Now();
  progress_.enter(Operation::kPlan);
  // As many as the scheduler lets out: those that come later reach the other ranks while this one
  // is run.
  while (auto planned = scheduler_->plan(absl::Now())) {
    if (options_.on_plan) options_.on_plan(*planned);
    planned_.push_back(*std::move(planned));
  }
  if (planned_.empty() && launched_.empty()) return false;
  report.plan_time = absl::Now() - start;
  if (absl::Status status = launch_planned(report); !status.ok()) return status;
  if (absl::Status status = commit_next(report); !status.ok()) return status;
  report.step_time = absl::Now() - start;
  return true;
}

absl::Status Engine::launch_planned(StepReport& report) {
  while (!planned_.empty() && std::ssize(launched_) < runner_->max_launched()) {
    const StepPlan& plan = launched_.emplace_back(std::move(planned_.front()));
    planned_.pop_front();
    running_step_ = plan.step;
    report_seats(plan);
    progress_.begin(plan.step, Operation::kRun);
    if (absl::Status status = runner_->launch(plan, report.times); !status.ok()) return status;
  }
  const bool holds = std::ssize(launched_) < runner_->max_launched();
  if (holds && options_.on_hold) options_.on_hold();
  return absl::OkStatus();
}

absl::Status Engine::commit_next(StepReport& report) {
  const StepPlan plan = std::move(launched_.front());
  launched_.pop_front();
  progress_.begin(plan.step, Operation::kRun);
  const auto result = runner_->collect(report.times);
  if (!result.ok()) return result.status();
  progress_.enter(Operation::kReport);
  if (options_.on_result) options_.on_result(*result);
  report.events = scheduler_->commit(*result, absl::Now());
  report.step = plan.step;
  report.ran_step = true;
  report.num_sampled = static_cast<int32_t>(
      std::count_if(plan.samples.begin(), plan.samples.end(),
                    [](const SampleRow& row) { return row.kind == SampleRow::Kind::kSample; }));
  report.num_rows = plan.ordinary.front().num_rows;
  report.num_row_layers = plan.num_row_layers;
  return absl::OkStatus();
}

}  // namespace lckv
