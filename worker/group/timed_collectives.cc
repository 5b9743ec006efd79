#include "worker/group/timed_collectives.h"

#include <utility>

namespace lckv {
namespace {

class TimedCollectives final : public Collectives {
 public:
  TimedCollectives(std::unique_ptr<Collectives> ranks, RankProgress& progress)
      : ranks_(std::move(ranks)), progress_(progress) {}

  int rank() const override { return ranks_->rank(); }
  int size() const override { return ranks_->size(); }
  absl::Status all_reduce(float* data, int64_t count) override {
    return timed(Operation::kAllReduce, [&] { return ranks_->all_reduce(data, count); });
  }
  absl::Status all_gather(const float* data, int64_t count, float* out) override {
    return timed(Operation::kAllGather, [&] { return ranks_->all_gather(data, count, out); });
  }
  absl::Status broadcast(void* data, int64_t bytes, int root) override {
    return timed(Operation::kBroadcast, [&] { return ranks_->broadcast(data, bytes, root); });
  }
  absl::Status barrier() override {
    return timed(Operation::kBarrier, [&] { return ranks_->barrier(); });
  }
  absl::Status wait() override {
    return timed(Operation::kWaitForRanks, [&] { return ranks_->wait(); });
  }
  absl::Status wait_for(absl::FunctionRef<bool()> are_there) override {
    return timed(Operation::kWaitForRanks, [&] { return ranks_->wait_for(are_there); });
  }

 private:
  template <class Call>
  absl::Status timed(Operation operation, const Call& call) {
    const Operation before = progress_.enter(operation);
    absl::Status status = call();
    // What failed stays the operation that is told.
    if (status.ok()) progress_.enter(before);
    return status;
  }

  const std::unique_ptr<Collectives> ranks_;
  RankProgress& progress_;
};

}  // namespace

std::unique_ptr<Collectives> timed_collectives(std::unique_ptr<Collectives> ranks,
                                               RankProgress& progress) {
  return std::make_unique<TimedCollectives>(std::move(ranks), progress);
}

}  // namespace lckv
