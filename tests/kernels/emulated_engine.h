// What tests of the engine over the emulated device share: the production scheduler, runner and
// model of any number of ranks, each a thread, turned by the test's own hand.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/rendezvous.h"
#include "worker/config.h"
#include "worker/engine/model_runner.h"
#include "worker/scheduler/sequence_spec.h"
#include "worker/startup.h"

namespace lckv {

// The demo model in float32, with little memory.
WorkerConfig small_config();

// Texts in config.json, and what they become.
using ConfigChanges = std::map<std::string, std::string>;
// The demo model's shape and made-up weights, with parts of its config changed.
WorkerConfig changed_config(const std::string& name, const ConfigChanges& changes);

// A cyclic group of two layers and nothing besides: what products take in depends on walks alone.
ConfigChanges small_group();
WorkerConfig small_group_config();

// While it lives, kernels run when somebody waits for them, and not before.
class DeviceFallsBehind {
 public:
  DeviceFallsBehind();
  ~DeviceFallsBehind();
  DeviceFallsBehind(const DeviceFallsBehind&) = delete;
  DeviceFallsBehind& operator=(const DeviceFallsBehind&) = delete;
};

struct Rank {
  std::unique_ptr<Ops> ops;
  LoadedModel loaded;
  std::unique_ptr<ModelRunner> runner;

  ~Rank() {
    if (loaded.ops != nullptr) loaded.ops->enter_thread();
  }
};

// Puts the rank's ops to use and loads its weights; its test has failed where it cannot.
void load(Rank& rank, TensorShard shard, const RendezvousStore& store, const WorkerConfig& config);

// The CUDA backend, once for each rank, which has a device of its own unless all have one.
struct DeviceChoice {
  bool are_one = false;
  bool reproducible = true;
  bool records_batches = true;
};
std::vector<std::unique_ptr<Ops>> devices(int count, const DeviceChoice& choice = {});

// The plain reference, of one rank.
std::vector<std::unique_ptr<Ops>> reference();
// The only rank's; its test has failed where it cannot be had.
LoadedModel load_on_device(const WorkerConfig& config, bool records_batches = false);

struct Generated {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // own, then top ones, of all tokens they were asked for
  friend bool operator==(const Generated&, const Generated&) = default;
};

// What the sequences get, by number from 1 on. Each of the Ops is a rank's; the scheduler is the
// first one's, whose `load` is what it was at the end.
std::map<uint64_t, Generated> generate(const WorkerConfig& config,
                                       const std::vector<SequenceSpec>& specs,
                                       std::vector<std::unique_ptr<Ops>> ops,
                                       SchedulerLoad* load = nullptr);

}  // namespace lckv
