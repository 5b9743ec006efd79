#include "client/resuming_stream.h"

#include <memory>
#include <utility>

#include "grpcpp/alarm.h"

namespace lckv {
namespace {

// Owns itself until the last call has ended. Its calls follow one another.
class ResumingStream {
 public:
  ResumingStream(v1::Inference::Stub& stub, v1::GenerateRequest request,
                 const ConnectionOptions& connection, const ResumeOptions& options,
                 StreamListener listener, std::function<void()> on_resume)
      : stub_(stub),
        request_(std::move(request)),
        connection_(connection),
        delay_(options.delay),
        resumes_left_(options.max_resumes),
        listener_(std::move(listener)),
        on_resume_(std::move(on_resume)) {}

  void call() {
    start_stream(stub_, request_, connection_,
                 {[this](const v1::GenerateEvent& event) { take(event); },
                  [this](const absl::Status& status) { end(status); }});
  }

 private:
  void take(const v1::GenerateEvent& event) {
    if (event.has_started()) {
      // What continues it must be drawn as what began.
      request_.mutable_sampling()->set_seed(event.started().sampling().seed());
      request_.mutable_resume()->set_fingerprint(event.started().fingerprint());
    } else if (event.has_tokens()) {
      v1::Resume& resume = *request_.mutable_resume();
      if (resume.choices().empty()) resume.add_choices();
      v1::ChoiceProgress& progress = *resume.mutable_choices(0);
      progress.mutable_ids()->MergeFrom(event.tokens().ids());
      progress.set_num_text_bytes(progress.num_text_bytes() + event.tokens().text().size());
    }
    listener_.on_event(event);
  }

  void end(const absl::Status& status) {
    if (absl::IsUnavailable(status) && resumes_left_ > 0) {
      --resumes_left_;
      on_resume_();
      alarm_ = std::make_unique<grpc::Alarm>();
      alarm_->Set(absl::ToChronoTime(absl::Now() + delay_), [this](bool) { call(); });
      delay_ *= 2;
      return;
    }
    const auto on_end = std::move(listener_.on_end);
    delete this;  // first, because the program may end once the owner knows
    on_end(status);
  }

  v1::Inference::Stub& stub_;
  v1::GenerateRequest request_;
  const ConnectionOptions connection_;
  absl::Duration delay_;
  int resumes_left_;
  StreamListener listener_;
  const std::function<void()> on_resume_;
  std::unique_ptr<grpc::Alarm> alarm_;
};

}  // namespace

void start_resuming_stream(v1::Inference::Stub& stub, v1::GenerateRequest request,
                           const ConnectionOptions& connection, const ResumeOptions& options,
                           StreamListener listener, std::function<void()> on_resume) {
  auto* const stream = new ResumingStream(stub, std::move(request), connection, options,
                                          std::move(listener), std::move(on_resume));
  stream->call();
}

}  // namespace lckv
