// The call's part that waits for a first replica of its model: without one nothing is known of the
// model's tokenizer and limits, so the request waits as it came.
#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "router/api/generate_call.h"
#include "router/model_directory.h"
#include "rpc/status_mapping.h"

namespace lckv {

// False where the call does not lack its model alone, or may not wait for it.
bool GenerateCall::park(const v1::GenerateRequest& request) {
  const absl::Time now = absl::Now();
  std::lock_guard lock(mutex_);
  if (!lacks_model_) return false;
  parked_until_ = std::min({parked_until_, arrival_ + environment_.options.max_wait_for_model,
                            absl::FromChrono(context_.deadline())});
  if (now >= parked_until_) return false;
  if (environment_.num_parked.fetch_add(1) >= environment_.options.max_parked) {
    --environment_.num_parked;
    return false;
  }
  environment_.metrics.model(model_name_).queue_depth->Increment();
  parked_ = Parked{.request = request, .until = parked_until_, .failure = cancelled_};
  return true;
}

// Goes on, or ends, on a thread of gRPC's: turning many prompts into ids would hold the pulse up.
void GenerateCall::look_at_parked(absl::Time now) {
  std::string model;
  {
    std::lock_guard lock(mutex_);
    if (!parked_ || parked_->waking) return;
    model = parked_->request.model();
  }
  const bool is_here = find_model(*environment_.fleet.snapshot(), model).ok();
  std::lock_guard lock(mutex_);
  if (!is_here && now < parked_->until && parked_->failure.ok()) return;
  parked_->waking = true;
  alarm_ = std::make_unique<grpc::Alarm>();
  // The alarm keeps its function: a call that this owned would never go.
  alarm_->Set(absl::ToChronoTime(now), [weak = weak_from_this()](bool) {
    if (const auto self = weak.lock()) self->wake();
  });
}

void GenerateCall::wake() {
  Parked parked;
  std::string model;
  {
    std::lock_guard lock(mutex_);
    parked = *std::exchange(parked_, std::nullopt);
    model = model_name_;
  }
  --environment_.num_parked;
  environment_.metrics.model(model).queue_depth->Decrement();
  if (parked.failure.ok()) {
    begin(parked.request);
  } else {
    refuse(parked.failure);
  }
}

}  // namespace lckv
