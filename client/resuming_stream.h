// A Generate call that goes on after a loss: where it ends with UNAVAILABLE, it is made again and
// continues behind the last token that came.
#pragma once

#include "client/stream_call.h"

namespace lckv {

struct ResumeOptions {
  int max_resumes = 0;
  absl::Duration delay = absl::Milliseconds(100);  // before the first one; doubles each time
};

// As start_stream(); events of the calls that follow look like those of one. `on_end` hears of the
// last call; `on_resume` of each that is made again, before it. Of requests with one choice.
void start_resuming_stream(v1::Inference::Stub& stub, v1::GenerateRequest request,
                           const ConnectionOptions& connection, const ResumeOptions& options,
                           StreamListener listener, std::function<void()> on_resume);

}  // namespace lckv
