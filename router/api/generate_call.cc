#include "router/api/generate_call.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "router/model_directory.h"
#include "router/validation.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

uint64_t random_number() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// A client's clock of a deadline began earlier than ours: at the deadline its reset may come first.
constexpr absl::Duration kClientsLead = absl::Milliseconds(100);

double seconds_since(absl::Time time) { return absl::ToDoubleSeconds(absl::Now() - time); }

double rounded_ms(double seconds) { return std::round(seconds * 1e4) / 10; }

}  // namespace

GenerateCall::GenerateCall(CallEnvironment& environment, grpc::CallbackServerContext& context)
    : environment_(environment), context_(context), arrival_(absl::Now()) {}

void GenerateCall::start(const v1::GenerateRequest& request) {
  const auto self = shared_from_this();
  {
    std::lock_guard lock(mutex_);
    self_ = self;
    request_id_ = request.request_id();
    take_trace();
  }
  if (!environment_.registry.admit(self, environment_.options.max_concurrent_requests)) {
    refuse(with_retry(absl::ResourceExhaustedError("too many requests at once"), absl::Seconds(1)));
    return;
  }
  begin(request);
}

void GenerateCall::begin(const v1::GenerateRequest& request) {
  absl::StatusOr<GenerateSpec> spec = check(request);
  if (!spec.ok()) {
    if (!park(request)) refuse(spec.status());
    return;
  }
  auto relay = std::make_unique<Relay>(*std::move(spec), environment_.options.relay, arrival_);
  if (absl::Status status = relay->prepare(); !status.ok()) {
    refuse(status);
    return;
  }
  const std::string model = relay->spec().model->hello.model();
  CallQueue::Entry entry;
  {
    std::lock_guard lock(mutex_);
    request_id_ = relay->spec().request_id;
    seats_.resize(relay->spec().choices.size());
    token_times_.assign(seats_.size(), absl::InfinitePast());
    ticket_ = environment_.next_ticket++;
    relay_ = std::move(relay);
    // The call may have been cancelled while it was checked.
    if (!cancelled_.ok()) relay_->fail(cancelled_, true);
    entry = entry_for(relay_->unplaced());
  }
  environment_.retries.earn(model);
  environment_.metrics.model(model).inflight->Increment();
  pump();
  if (entry.choices.empty()) return;
  enqueue(std::move(entry));
  std::lock_guard lock(mutex_);
  waited_ = !placed_;
}

// A span of ours under the caller's, where there is one.
void GenerateCall::take_trace() {
  const auto& metadata = context_.client_metadata();
  const auto given = metadata.find("traceparent");
  if (given == metadata.end() || metadata.count("traceparent") > 1) return;
  const auto parent = parse_traceparent({given->second.data(), given->second.size()});
  if (!parent) return;
  parent_span_id_ = parent->span_id;
  trace_ = child_of(*parent, random_number());
}

absl::StatusOr<GenerateSpec> GenerateCall::check(const v1::GenerateRequest& request) {
  const auto caller = environment_.access.check(context_.client_metadata(), Right::kGenerate);
  if (!caller.ok()) return caller.status();
  if (caller->authenticated && !request.tenant().empty() && request.tenant() != caller->tenant) {
    return with_field(absl::PermissionDeniedError("tenant: is not the bearer token's"), "tenant",
                      "is not the bearer token's");
  }
  if (absl::Status status = check_request(request); !status.ok()) return status;
  auto model = model_for(request);
  if (!model.ok()) return model.status();
  environment_.metrics.observe_overhead(OverheadStage::kParse, seconds_since(arrival_));
  const absl::Time before = absl::Now();
  auto spec = make_spec(request, *std::move(model), random_number());
  environment_.metrics.observe_overhead(OverheadStage::kTokenize, seconds_since(before));
  if (!spec.ok()) return spec;
  if (spec->request_id.empty()) spec->request_id = absl::StrFormat("%016x", random_number());
  if (caller->authenticated) spec->tenant = caller->tenant;
  {
    std::lock_guard lock(mutex_);
    if (trace_) spec->traceparent = to_traceparent(*trace_);
  }
  if (absl::Status status = admit(*spec); !status.ok()) return status;
  return spec;
}

absl::StatusOr<std::shared_ptr<const ModelInfo>> GenerateCall::model_for(
    const v1::GenerateRequest& request) {
  const auto set = environment_.fleet.snapshot();
  auto model = find_model(*set, request.model());
  const auto& expected = set->expected_models;
  {
    std::lock_guard lock(mutex_);
    lacks_model_ = false;
    if (model.ok()) {
      model_name_ = (*model)->hello.model();
    } else if (std::find(expected.begin(), expected.end(), request.model()) != expected.end()) {
      model_name_ = request.model();
    } else if (request.model().empty() && expected.size() == 1) {
      model_name_ = expected.front();
    }
    lacks_model_ = absl::IsUnavailable(model.status()) && !model_name_.empty();
  }
  if (!model.ok()) return model.status();
  const std::string& fingerprint = request.resume().fingerprint();
  if (!fingerprint.empty() && !knows_fingerprint(*set, (*model)->hello.model(), fingerprint)) {
    return with_field(absl::FailedPreconditionError(
                          "resume.fingerprint: no replica has the interrupted call's fingerprint"),
                      "resume.fingerprint", "no replica has it");
  }
  return model;
}

// Holds the call against its tenant's limits; what it takes is given back in close().
absl::Status GenerateCall::admit(GenerateSpec& spec) {
  if (absl::Status status = environment_.tenants.admit(
          {.tenant = spec.tenant, .num_prompt_tokens = spec.prompt.size(), .now = absl::Now()});
      !status.ok()) {
    return status;
  }
  spec.priority = environment_.tenants.cap_priority(spec.tenant, spec.priority);
  std::lock_guard lock(mutex_);
  tenant_ = spec.tenant;
  return absl::OkStatus();
}

void GenerateCall::refuse(const absl::Status& why) {
  {
    std::lock_guard lock(mutex_);
    phase_ = Phase::kFinished;
  }
  close(why);
}

void GenerateCall::on_seated(ChoiceAttempt attempt) {
  std::lock_guard lock(mutex_);
  if (phase_ == Phase::kOpen) relay_->on_seated(attempt);
}

void GenerateCall::on_update(ChoiceAttempt attempt, const SequenceUpdate& update) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen) return;
    const absl::Time now = absl::Now();
    relay_->on_update(attempt, update, now);
    if (!update.tokens.empty()) note_tokens(attempt.choice, now);
    environment_.metrics.observe_overhead(OverheadStage::kDetokenize, seconds_since(now));
  }
  pump();
}

void GenerateCall::note_tokens(uint32_t choice, absl::Time now) {
  const ModelMetrics& metrics = environment_.metrics.model(model_name_);
  absl::Time& last = token_times_[choice];
  if (last == absl::InfinitePast()) {
    metrics.ttft_seconds->Observe(absl::ToDoubleSeconds(now - arrival_));
  } else {
    metrics.itl_seconds->Observe(absl::ToDoubleSeconds(now - last));
  }
  if (std::exchange(seats_[choice].resuming, false) && last != absl::InfinitePast()) {
    metrics.resume_gap_seconds->Observe(absl::ToDoubleSeconds(now - last));
  }
  last = now;
}

void GenerateCall::on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen) return;
    relay_->on_refused(attempt, refused, absl::Now());
  }
  pump();
}

void GenerateCall::on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen) return;
    relay_->on_lost(attempt, kind, why, absl::Now());
  }
  pump();
}

void GenerateCall::end(const absl::Status& why) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen) return;
    if (parked_) parked_->failure = why;
    if (relay_ == nullptr) return;
    relay_->fail(why, false);
  }
  pump();
}

void GenerateCall::tick(absl::Time now) {
  look_at_parked(now);
  if (give_up_on_reader(now)) environment_.registry.remove(shared_from_this());
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen || !write_issued_ || relay_ == nullptr) return;
    if (now - write_time_ <= environment_.options.slow_reader_timeout) return;
    slow_ = true;
    relay_->fail(absl::ResourceExhaustedError("the client reads too slowly"), true);
  }
  pump();
}

// Of an ended call whose reader has not even taken the status: without a reset gRPC would keep what
// waits for it for as long as the connection stands. True once the call is gone.
bool GenerateCall::give_up_on_reader(absl::Time now) {
  std::lock_guard lock(mutex_);
  if (phase_ != Phase::kFinished) return false;
  if (self_ == nullptr) return true;
  // OnDone waits for the lock, so that the context is there; what follows comes on other threads.
  if (now - write_time_ > 2 * environment_.options.slow_reader_timeout) context_.TryCancel();
  return false;
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    writing_ = write_issued_ = false;
  }
  if (!ok) note_caller_gone();
  pump();
}

void GenerateCall::OnCancel() {
  note_caller_gone();
  pump();
}

// A caller that goes while something is written to it is told by the write, by OnCancel(), or by
// both, in either order.
void GenerateCall::note_caller_gone() {
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen || !cancelled_.ok()) return;
    const bool late = absl::FromChrono(context_.deadline()) <= absl::Now() + kClientsLead;
    environment_.metrics.count_cancelled(late);
    cancelled_ = late ? absl::DeadlineExceededError("the deadline passed")
                      : absl::CancelledError("the caller went away");
    if (parked_) parked_->failure = cancelled_;  // for the next tick()
    if (relay_ == nullptr) return;               // or begin() sees it
    relay_->fail(cancelled_, true);
  }
  environment_.queue.remove(this);
}

void GenerateCall::pump() {
  bool write = false;
  bool finish = false;
  absl::Status status;
  std::vector<CallQueue::Entry> entries;
  std::vector<std::shared_ptr<SessionLink>> told;
  {
    std::lock_guard lock(mutex_);
    if (relay_ == nullptr || phase_ != Phase::kOpen) return;
    entries = entries_for_needs();
    if (!writing_ && relay_->next_event(outgoing_)) {
      writing_ = write = true;
    } else if (relay_->ended() && (!writing_ || (slow_ && write_issued_))) {
      // gRPC sends the status behind a write that still waits for its reader.
      finish = true;
      phase_ = Phase::kFinished;
      status = relay_->status();
    }
    run_commands();
    told = links();
  }
  for (const auto& link : told) link->flush();
  for (CallQueue::Entry& entry : entries) enqueue(std::move(entry));
  if (write) {
    StartWrite(&outgoing_);
    std::lock_guard lock(mutex_);
    // Its OnWriteDone may have come already, and the next write begun.
    if (writing_ && !write_issued_) {
      write_issued_ = true;
      write_time_ = absl::Now();
    }
  }
  if (finish) close(status);
}

// What the log says of an ended call, but for its end. With the lock held.
LogFields GenerateCall::describe() const {
  const RelaySummary summary = relay_ != nullptr ? relay_->summary() : RelaySummary();
  LogFields fields = {{"request_id", request_id_.substr(0, 256)}, {"model", model_name_}};
  if (tenant_ && !tenant_->empty()) fields.emplace_back("tenant", *tenant_);
  if (trace_) {
    fields.emplace_back("trace_id", trace_->trace_id);
    fields.emplace_back("span_id", trace_->span_id);
    fields.emplace_back("parent_span_id", parent_span_id_);
  }
  if (!replica_.empty()) fields.emplace_back("replica", replica_);
  fields.emplace_back("choices", seats_.size());
  fields.emplace_back("prompt_tokens", summary.num_prompt_tokens);
  fields.emplace_back("cached_tokens", summary.num_cached_tokens);
  fields.emplace_back("generated_tokens", summary.num_new_tokens);
  fields.emplace_back("resumes", summary.num_resumes);
  fields.emplace_back("queue_ms", rounded_ms(summary.queue_seconds));
  fields.emplace_back("first_token_ms", rounded_ms(summary.first_token_seconds));
  return fields;
}

void GenerateCall::count_rejected(const absl::Status& status, bool slow) {
  if (absl::IsCancelled(status)) return;
  std::string reason(code_name(status.code()));
  if (slow) reason = "slow_reader";
  if (error_reason(status) == "POISON") reason = "poison";
  environment_.metrics.count_rejected(reason);
}

// Counts, logs and sends the end of the call. Once.
void GenerateCall::close(const absl::Status& status) {
  const auto self = shared_from_this();
  const double total_seconds = seconds_since(arrival_);
  std::string model;
  RelaySummary summary;
  bool was_open = false;
  bool slow = false;
  bool stuck = false;      // the end has to wait for the reader, too
  bool by_caller = false;  // OnCancel() has counted that
  std::optional<std::string> tenant;
  LogFields fields;
  {
    std::lock_guard lock(mutex_);
    fields = describe();
    slow = slow_;
    stuck = slow_ && writing_;
    by_caller = !cancelled_.ok() && status.code() == cancelled_.code();
    tenant.swap(tenant_);
    model = model_name_;
    was_open = relay_ != nullptr;
    if (was_open) summary = relay_->summary();
  }
  if (!stuck) environment_.registry.remove(self);  // else tick() does
  if (tenant) environment_.tenants.release(*tenant, summary.num_new_tokens, absl::Now());
  environment_.metrics.count_request(model, "Generate", status.code());
  if (!status.ok() && !by_caller) count_rejected(status, slow);
  const ModelMetrics& of_model = environment_.metrics.model(model);
  of_model.e2e_seconds->Observe(total_seconds);
  if (was_open) of_model.inflight->Decrement();
  of_model.prompt_tokens->Increment(was_open ? summary.num_prompt_tokens : 0);
  of_model.cached_tokens->Increment(summary.num_cached_tokens);
  of_model.completion_tokens->Increment(static_cast<double>(summary.num_new_tokens));
  fields.emplace_back("total_ms", rounded_ms(total_seconds));
  fields.emplace_back("code", std::string(code_name(status.code())));
  if (!status.ok()) fields.emplace_back("error", std::string(status.message()));
  environment_.log.write("generate", fields);
  // Nothing of the call is used after this but what `self` holds.
  add_retry_trailer(status, context_);
  Finish(to_grpc_status(status));
}

void GenerateCall::OnDone() {
  std::shared_ptr<GenerateCall> self;
  std::vector<Seat> seats;
  std::unique_ptr<Relay> relay;
  std::lock_guard lock(mutex_);
  self = std::move(self_);
  seats = std::move(seats_);
  relay = std::move(relay_);
}

}  // namespace lckv
