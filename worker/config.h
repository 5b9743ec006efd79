// The worker's command line as data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/dtype.h"
#include "rpc/logging.h"
#include "rpc/tls.h"
#include "worker/scheduler/sequence_spec.h"

namespace lckv {

enum class LoadFormat : uint8_t { kAuto, kDummy };
enum class Device : uint8_t { kCpu, kCuda, kSim };
enum class NumberFormat : uint8_t { kAuto, kFloat32, kBFloat16, kFloat16 };
enum class Choice : uint8_t { kAuto, kOn, kOff };
enum class Compatibility : uint8_t { kNone, kOfficialDecode };

struct WorkerConfig {
  std::string model;              // folder of the checkpoint
  std::string served_model_name;  // empty: the folder's name
  LoadFormat load_format = LoadFormat::kAuto;
  Device device = Device::kCpu;
  int32_t device_index = 0;         // of --device cuda:N
  std::string sim_device = "h200";  // of --device sim: a name, or the path of a .json file
  int32_t sim_replicas = 1;         // in this process
  NumberFormat dtype = NumberFormat::kAuto;
  NumberFormat kv_cache_dtype = NumberFormat::kAuto;
  int32_t threads = 0;        // 0: one per core
  int32_t max_model_len = 0;  // tokens; 0: the checkpoint's
  int32_t max_logprobs = 20;  // -1: the vocabulary
  Choice reproducible = Choice::kAuto;
  bool enforce_eager = false;  // no recorded CUDA graphs
  Compatibility compatibility = Compatibility::kNone;

  uint64_t kv_cache_bytes = uint64_t{4} << 30;
  bool kv_cache_given = false;          // else a device with memory of its own gives what is left
  double gpu_memory_utilization = 0.9;  // of that, for weights and KV
  double cpu_offload_gb = 0.0;          // GiB of it that weights in host memory are to free
  uint64_t swap_bytes = uint64_t{1} << 30;
  int32_t block_size = 16;  // tokens per block of the largest slot
  bool enable_prefix_caching = true;
  int32_t staging_rows = 0;  // per cyclic group; 0: the context and one row per seat

  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 2048;
  int32_t max_waiting = 1024;
  PrefillMode prefill_mode = PrefillMode::kExact;
  int32_t prefill_lookahead = 0;           // 0: by cost, or by kReproducibleLookahead
  std::optional<float> prefill_tolerance;  // absent: by the KV format

  int32_t tensor_parallel_size = 1;  // ranks of the replica
  int32_t rank = -1;                 // this process's; -1: the launcher or, of one rank, rank 0
  std::string leader;                // host:port that ranks meet at; empty: chosen by the launcher
  int32_t first_rank = -1;           // of this host's; -1: by LWS_WORKER_INDEX
  int32_t local_ranks = 0;           // on this host; 0: all, or by LWS_GROUP_SIZE
  bool allow_shared_device = false;  // all ranks take the same one
  std::string life;                  // by the launcher, as the next
  int32_t launcher_pipe = -1;
  absl::Duration start_timeout = absl::Minutes(10);
  absl::Duration rank_timeout = absl::Seconds(3);
  TlsPeerFiles rank_tls;
  uint16_t rank_metrics_port = 0;  // rank r > 0 serves metrics there plus r; 0: not at all

  std::string host = "127.0.0.1";
  uint16_t port = 50061;
  uint16_t metrics_port = 9091;
  uint16_t health_port = 50062;
  TlsServerFiles tls;  // of the port for routers
  bool allow_plaintext = false;
  absl::Duration drain_timeout = absl::Seconds(30);
  absl::Duration session_lease = absl::Seconds(10);
  absl::Duration step_timeout = absl::Seconds(60);
  LoggingOptions logging;
};

// Fills `config` from flags and environment. Returns the exit code where the program is to end now.
std::optional<int> parse_worker_config(int argc, const char* const* argv, WorkerConfig& config);

// "cuda:1" -> 1, "cuda" -> 0; nothing where it is none.
std::optional<int32_t> cuda_index(absl::string_view given);

// The number of this rank's CUDA device: a launcher's ranks take one after the other, from
// --device cuda:N on, or, with --allow-shared-device, all take that one.
int32_t device_of_rank(const WorkerConfig& config);

// The host and port of "host:port". Errors: InvalidArgument naming --leader.
absl::StatusOr<std::pair<std::string, uint16_t>> split_leader(const std::string& leader);

// What can be said without a checkpoint. Errors: InvalidArgument naming the flags.
absl::Status check_worker_config(const WorkerConfig& config);

}  // namespace lckv
