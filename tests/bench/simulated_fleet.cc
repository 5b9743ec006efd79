#include "tests/bench/simulated_fleet.h"

#include <mutex>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "tests/bench/stream_number.h"
#include "worker/engine/engine.h"
#include "worker/service/engine_service.h"
#include "worker/service/service_port.h"
#include "worker/service/worker_metrics.h"
#include "worker/sim/simulated_runner.h"
#include "worker/startup.h"

namespace lckv::bench {
namespace {

// Steps take what they are told to, whatever they hold.
DeviceProfile device_of(absl::Duration step) {
  return {.name = "bench",
          .memory_bytes = 1e18,
          .memory_bytes_per_second = 1e18,
          .bfloat16_flops_per_second = 1e18,
          .float32_flops_per_second = 1e18,
          .host_bytes_per_second = 1e18,
          .peer_bytes_per_second = 1e18,
          .step_overhead = step};
}

}  // namespace

class SimulatedFleet::Replica {
 public:
  Replica(const WorkerConfig& config, const LoadedModel& loaded, absl::Duration step,
          Emissions& emissions)
      : emissions_(emissions),
        metrics_(std::make_shared<prometheus::Registry>(), loaded.plan.model_name, LCKV_VERSION),
        service_({}, &metrics_) {
    auto runner = std::make_unique<SimulatedRunner>(
        SimulatedRunnerOptions{.max_num_seqs = config.max_num_seqs,
                               .vocabulary = loaded.config.vocabulary_size,
                               .num_groups = loaded.passes.num_groups()},
        StepCost(device_of(step), loaded.config, loaded.passes, {}));
    engine_ = std::make_unique<Engine>(
        EngineOptions{}, std::make_unique<Scheduler>(loaded.plan.scheduler, loaded.passes),
        std::move(runner), [this](const StepReport& report) {
          note(report);
          service_.report(report);
        });
    service_.serve(make_hello(loaded), make_limits(config, loaded), [this](EngineCommand command) {
      if (const auto* submit = std::get_if<SubmitCommand>(&command)) note(*submit);
      return engine_->post(std::move(command));
    });
    auto port = ServicePort::open("127.0.0.1", 0, service_);
    LCKV_CHECK(port.ok());
    port_ = *std::move(port);
    engine_->start();
  }
  ~Replica() {
    service_.close();
    port_->close(absl::Seconds(2));
    engine_->stop();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_->port()); }
  int num_sequences() const {
    const std::lock_guard lock(mutex_);
    return num_running_and_waiting_;
  }

 private:
  struct Sequence {
    size_t stream = 0;
    uint32_t num_tokens = 0;
  };

  void note(const SubmitCommand& submit) {
    const std::lock_guard lock(mutex_);
    const auto num_tokens = static_cast<uint32_t>(submit.spec->resumed.size());
    sequences_[raw(submit.sequence)] = {stream_of(submit.spec->prompt), num_tokens};
  }

  void note(const StepReport& report) {
    const std::lock_guard lock(mutex_);
    num_running_and_waiting_ = report.load.num_running + report.load.num_waiting;
    for (const SequenceEvent& event : report.events) {
      const auto found = sequences_.find(raw(event.sequence));
      if (found == sequences_.end()) continue;
      if (event.kind == SequenceEvent::Kind::kToken) {
        emissions_.emitted(found->second.stream, found->second.num_tokens++);
      }
      if (event.kind == SequenceEvent::Kind::kFinished) sequences_.erase(found);
    }
  }

  Emissions& emissions_;
  mutable std::mutex mutex_;  // guards the next two
  std::unordered_map<uint64_t, Sequence> sequences_;
  int num_running_and_waiting_ = 0;
  WorkerMetrics metrics_;
  EngineService service_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ServicePort> port_;
};

SimulatedFleet::SimulatedFleet(const SimulatedFleetOptions& options, Emissions& emissions) {
  const WorkerConfig config{.model = options.model, .max_num_seqs = options.max_num_seqs};
  auto loaded = read_model(config);
  LCKV_CHECK(loaded.ok());
  loaded->fingerprint = "bench";
  for (int i = 0; i < options.num_replicas; ++i) {
    replicas_.push_back(std::make_unique<Replica>(config, *loaded, options.step, emissions));
  }
}

SimulatedFleet::~SimulatedFleet() = default;

std::string SimulatedFleet::addresses() const {
  return absl::StrJoin(replicas_, ",", [](std::string* out, const auto& replica) {
    out->append(replica->address());
  });
}

int SimulatedFleet::num_sequences() const {
  return std::accumulate(replicas_.begin(), replicas_.end(), 0, [](int sum, const auto& replica) {
    return sum + replica->num_sequences();
  });
}

}  // namespace lckv::bench
