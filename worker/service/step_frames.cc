#include "worker/service/step_frames.h"

#include <string>
#include <utility>

#include "rpc/status_mapping.h"

namespace lckv {
namespace {

using internal::v1::Finished;
using internal::v1::Logprobs;
using internal::v1::PromptLogprobs;
using internal::v1::Step;
using internal::v1::WorkerFrame;

// A frame that has reached this size takes no more.
constexpr size_t kFullFrameBytes = 4 << 20;
constexpr size_t kEntryBytes = 32;  // of a column's entry, about

// What a router that was refused for lack of room waits before it tries again.
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

size_t bytes_of(const std::optional<TokenLogprob>& logprob) {
  return kEntryBytes + (logprob ? logprob->top_ids.size() * 8 : 0);
}

void fill(Logprobs& to, const std::optional<TokenLogprob>& from) {
  if (!from) return;
  to.set_own(from->own);
  to.mutable_top_ids()->Add(from->top_ids.begin(), from->top_ids.end());
  to.mutable_top_logprobs()->Add(from->top_logprobs.begin(), from->top_logprobs.end());
}

Finished::Reason reason_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return Finished::REASON_EOS;
    case FinishReason::kStopToken:
      return Finished::REASON_STOP_TOKEN;
    case FinishReason::kMaxNewTokens:
      return Finished::REASON_MAX_NEW_TOKENS;
    case FinishReason::kContextFull:
      return Finished::REASON_CONTEXT_FULL;
  }
  return Finished::REASON_FAILED;
}

}  // namespace

Step& StepFrames::step_for(size_t bytes) {
  if (steps_.empty() || bytes_ >= kFullFrameBytes) {
    steps_.emplace_back().mutable_step()->set_step(step_);
    bytes_ = 0;
  }
  bytes_ += bytes;
  return *steps_.back().mutable_step();
}

void StepFrames::seated(uint64_t handle) {
  if (!seats_) seats_.emplace();
  seats_->mutable_seated()->add_handle(handle);
}

void StepFrames::started(uint64_t handle, const SequenceEvent& event, absl::Duration queued,
                         bool scored) {
  Step& step = step_for(kEntryBytes);
  internal::v1::Started* started = step.add_started();
  started->set_handle(handle);
  started->set_queue_seconds(absl::ToDoubleSeconds(queued));
  started->set_num_cached_tokens(static_cast<uint32_t>(event.num_cached_tokens));
  if (!scored) return;
  PromptLogprobs* first = step.add_prompt_logprobs();
  first->set_handle(handle);
  first->add_logprobs();
}

void StepFrames::token(uint64_t handle, const SequenceEvent& event) {
  Step& step = step_for(bytes_of(event.logprob));
  if (event.logprob) {
    while (step.logprobs_size() < step.token_size()) step.add_logprobs();
  }
  step.add_handle(handle);
  step.add_token(static_cast<uint32_t>(event.token));
  if (event.logprob || step.logprobs_size() > 0) fill(*step.add_logprobs(), event.logprob);
}

void StepFrames::prompt_logprob(uint64_t handle, const SequenceEvent& event) {
  Step& step = step_for(bytes_of(event.logprob));
  const auto position = static_cast<uint32_t>(event.position);
  const int newest = step.prompt_logprobs_size() - 1;
  PromptLogprobs* run = newest >= 0 ? step.mutable_prompt_logprobs(newest) : nullptr;
  if (run == nullptr || run->handle() != handle ||
      run->position() + static_cast<uint32_t>(run->logprobs_size()) != position) {
    run = step.add_prompt_logprobs();
    run->set_handle(handle);
    run->set_position(position);
  }
  fill(*run->add_logprobs(), event.logprob);
}

void StepFrames::finished(uint64_t handle, const SequenceEvent& event) {
  Finished* finished = step_for(kEntryBytes).add_finished();
  finished->set_handle(handle);
  finished->set_reason(reason_of(event.reason));
  if (event.reason == FinishReason::kStopToken) {
    finished->set_matched_stop_token(static_cast<uint32_t>(event.matched_stop_token));
  }
  finished->set_num_prefill_walks(static_cast<uint32_t>(event.num_prefill_walks));
  finished->set_num_preemptions(static_cast<uint32_t>(event.num_preemptions));
}

void StepFrames::refused(uint64_t handle, const absl::Status& status) {
  internal::v1::Refused& refused = *refusals_.emplace_back().mutable_refused();
  refused.set_handle(handle);
  refused.set_code(static_cast<int32_t>(status.code()));
  refused.set_message(std::string(status.message()));
  refused.set_field(violated_field(status).value_or(""));
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    refused.set_retry_seconds(absl::ToDoubleSeconds(kRetryDelay));
  }
}

std::vector<WorkerFrame> StepFrames::take() {
  std::vector<WorkerFrame> frames = std::move(refusals_);
  if (seats_) frames.push_back(*std::exchange(seats_, std::nullopt));
  for (WorkerFrame& frame : steps_) frames.push_back(std::move(frame));
  steps_.clear();
  refusals_.clear();
  bytes_ = 0;
  return frames;
}

}  // namespace lckv
