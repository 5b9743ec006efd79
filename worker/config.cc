#include "worker/config.h"

#include <cmath>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "rpc/flags.h"
#include "rpc/health_check.h"
#include "rpc/tls_flags.h"
#include "worker/kv/block_size.h"

namespace lckv {
namespace {

// Rows of one walk, tokens of a context: beyond it sums of rows and layers leave 32 bits.
constexpr int kMaxRows = 1 << 24;
constexpr int kMaxRanks = 1024;
constexpr double kMaxOffloadGiB = 1 << 20;

CLI::Option* add_number(CLI::App& app, const std::string& flag, int32_t& target, int min, int max,
                        const std::string& help) {
  return app.add_option(flag, target, help)
      ->check(CLI::Range(min, max))
      ->type_name("")
      ->capture_default_str();
}

const std::vector<std::pair<std::string, NumberFormat>>& number_formats() {
  static const auto& formats =
      *new std::vector<std::pair<std::string, NumberFormat>>{{"auto", NumberFormat::kAuto},
                                                             {"float32", NumberFormat::kFloat32},
                                                             {"bfloat16", NumberFormat::kBFloat16},
                                                             {"float16", NumberFormat::kFloat16}};
  return formats;
}

// As CLI11 asks: empty where it is right.
std::string check_device_name(const std::string& given) {
  if (given == "cpu" || given == "sim" || cuda_index(given)) return "";
  return absl::StrCat(given, " is no device; valid: cpu, cuda, cuda:N, sim");
}

void set_device(const std::string& given, WorkerConfig& config) {
  config.device = given == "cpu" ? Device::kCpu : given == "sim" ? Device::kSim : Device::kCuda;
  config.device_index = cuda_index(given).value_or(0);
}

void add_model_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Model";
  app.add_option("--model", config.model, "Folder of the checkpoint: config.json, *.safetensors")
      ->required()
      ->type_name("FOLDER")
      ->group(group);
  app.add_option("--served-model-name", config.served_model_name,
                 "Name that requests use; default: the folder's")
      ->type_name("NAME")
      ->group(group);
  add_enum(app, "--load-format", config.load_format,
           {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}},
           "dummy: random weights from config.json alone")
      ->group(group);
  app.add_option_function<std::string>(
         "--device", [&config](const std::string& given) { set_device(given, config); },
         "What runs the model; sim: nothing, but it takes as long as --sim-device would")
      ->check(CLI::Validator(check_device_name, "", ""))
      ->type_name("cpu|cuda[:N]|sim")
      ->default_str("cpu")
      ->group(group);
  add_enum(app, "--dtype", config.dtype, number_formats(),
           "Of weights and of what products take in; auto: the checkpoint's; float16: not on cpu")
      ->group(group);
  add_number(app, "--threads", config.threads, 0, 1024,
             "Threads of a rank's kernels; 0: one per core, which the ranks of a host share")
      ->take_last()
      ->group(group);
  add_number(app, "--max-model-len", config.max_model_len, 0, kMaxRows,
             "Prompt plus generated tokens; 0: the checkpoint's")
      ->group(group);
  add_number(app, "--max-logprobs", config.max_logprobs, -1, kMaxRows,
             "Most logprobs that a request may ask for; -1: the vocabulary")
      ->group(group);
  add_enum(app, "--reproducible", config.reproducible,
           {{"auto", Choice::kAuto}, {"on", Choice::kOn}, {"off", Choice::kOff}},
           "Results that no other request, thread count or chunking can change; auto: with float32")
      ->group(group);
  add_enum(app, "--compatibility", config.compatibility,
           {{"none", Compatibility::kNone}, {"official-decode", Compatibility::kOfficialDecode}},
           "Reproduces the official code's decode, for comparison only")
      ->group(group);
  app.add_flag("--enforce-eager", config.enforce_eager,
               "Of --device cuda: kernels are started one by one, never by a recorded CUDA graph")
      ->group(group);
}

void add_simulation_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Simulation";
  app.add_option("--sim-device", config.sim_device,
                 "Of --device sim: h200, h100, a100, l40s, l4, or the path of a .json file")
      ->type_name("NAME|FILE")
      ->capture_default_str()
      ->group(group);
  add_number(app, "--sim-replicas", config.sim_replicas, 1, 1000,
             "Replicas in this process; each has the ports of the one before it plus 1")
      ->group(group);
}

void add_memory_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Memory";
  add_byte_size(app, "--kv-cache-memory", config.kv_cache_bytes,
                "For keys and values; not given: on a device with memory of its own, what is left")
      ->group(group);
  app.add_option("--gpu-memory-utilization", config.gpu_memory_utilization,
                 "Share of such a device's memory for weights, keys and values")
      ->check(CLI::Range(0.01, 1.0))
      ->type_name("SHARE")
      ->capture_default_str()
      ->group(group);
  app.add_option("--cpu-offload-gb", config.cpu_offload_gb,
                 "GiB of each rank's device memory to free: layers stay in host memory and are "
                 "copied over in every step")
      ->check(CLI::Range(0.0, kMaxOffloadGiB))
      ->type_name("GIB")
      ->capture_default_str()
      ->group(group);
  add_enum(app, "--kv-cache-dtype", config.kv_cache_dtype, number_formats(),
           "Of keys and values; auto: as --dtype")
      ->group(group);
  add_number(app, "--block-size", config.block_size, 1, kMaxBlockSize,
             "Tokens per block of the largest slot, a power of two")
      ->group(group);
  add_number(app, "--staging-rows", config.staging_rows, 0, kMaxRows,
             "Unsettled rows per cyclic group; 0: --max-model-len and one per --max-num-seqs")
      ->group(group);
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", config.enable_prefix_caching,
               "Sequences of one tenant share the KV of equal beginnings; on by default")
      ->group(group);
  add_byte_size(app, "--swap-space", config.swap_bytes, "Host memory for preempted sequences")
      ->group(group);
}

void add_prefill_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Scheduling";
  add_enum(app, "--prefill-mode", config.prefill_mode,
           {{"exact", PrefillMode::kExact}, {"iterated", PrefillMode::kIterated}},
           "Where requests name none: the token-by-token result, or the checkpoint's passes")
      ->group(group);
  add_number(app, "--prefill-lookahead", config.prefill_lookahead, 0, kMaxRows,
             "Rows that a walk takes; 0: by cost, reproducible: 512, or 16 with float32 KV")
      ->group(group);
  const auto check = [](std::string& given) {
    float value = 0;
    const bool valid =
        given == "auto" || (absl::SimpleAtof(given, &value) && std::isfinite(value) && value >= 0);
    return valid ? std::string()
                 : absl::StrCat("\"", given, "\" is neither auto nor a number from 0 on");
  };
  app.add_option_function<std::string>(
         "--prefill-tolerance",
         [&config](const std::string& given) {
           config.prefill_tolerance.reset();
           float value = 0;
           if (absl::SimpleAtof(given, &value)) config.prefill_tolerance = value;
         },
         "How far a row may be from what was read and count as settled: auto: 2^-9 for bfloat16 "
         "KV, 2^-12 for float16, 0 for float32; 0: bitwise")
      ->check(CLI::Validator(check, "auto|NUMBER"))
      ->type_name("")
      ->default_str("auto")
      ->group(group);
}

void add_scheduling_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Scheduling";
  add_number(app, "--max-num-seqs", config.max_num_seqs, 1, 1 << 16, "Sequences that run at once")
      ->group(group);
  add_number(app, "--max-num-batched-tokens", config.max_num_batched_tokens, 1, kMaxRows,
             "Rows of a step; times the layers, its budget")
      ->group(group);
  add_number(app, "--max-waiting", config.max_waiting, 1, 1 << 20, "Sequences that wait")
      ->group(group);
  add_prefill_flags(app, config);
  add_duration(app, "--drain-timeout", config.drain_timeout,
               "After SIGTERM running sequences have so long to finish or move")
      ->group(group);
  add_duration(app, "--session-lease", config.session_lease,
               "A router that is silent for so long loses its session, and that its sequences")
      ->group(group);
  add_duration(
      app, "--step-timeout", config.step_timeout,
      "Not ready where work has waited so long without a layer run; a loop that stands still so "
      "long ends its replica")
      ->group(group);
}

void add_rank_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Ranks";
  add_number(app, "--tensor-parallel-size", config.tensor_parallel_size, 1, kMaxRanks,
             "Ranks that share the model; above 1 this process starts and watches them")
      ->group(group);
  app.add_option("--leader", config.leader,
                 "Where the ranks of several hosts meet; default: LWS_LEADER_ADDRESS, else this "
                 "host alone")
      ->type_name("HOST:PORT")
      ->take_last()
      ->group(group);
  add_number(app, "--local-ranks", config.local_ranks, 0, kMaxRanks,
             "Ranks to start on this host; 0: an equal share of LWS_GROUP_SIZE hosts, else all")
      ->group(group);
  add_number(app, "--first-rank", config.first_rank, -1, kMaxRanks,
             "First rank of this host; -1: by LWS_WORKER_INDEX, else 0")
      ->take_last()
      ->group(group);
  app.add_flag("--allow-shared-device", config.allow_shared_device,
               "For tests: all ranks take the device of --device cuda:N, in turns, so that every "
               "exchange takes milliseconds")
      ->group(group);
  add_number(app, "--rank", config.rank, -1, kMaxRanks,
             "Be this rank, without a launcher; -1: start the ranks of this host")
      ->take_last()
      ->group(group);
  add_duration(app, "--start-timeout", config.start_timeout,
               "All ranks are loaded and connected within that time, or the replica ends")
      ->group(group);
  add_duration(app, "--rank-timeout", config.rank_timeout,
               "A rank that is silent so long is stopped or dead, and its replica ends")
      ->group(group);
  add_tls_client_flags(app, "--rank-tls", config.rank_tls.files, config.rank_tls.server_name,
                       group);
  add_port(app, "--rank-metrics-port", config.rank_metrics_port,
           "Rank r above 0 serves /metrics there plus r; 0: not at all")
      ->group(group);
  // The launcher's to its ranks.
  app.add_option("--life", config.life)->take_last()->group("");
  app.add_option("--launcher-pipe", config.launcher_pipe)->group("");
}

void add_network_flags(CLI::App& app, WorkerConfig& config) {
  const char* group = "Network";
  app.add_option("--host", config.host, "Address that all ports bind to")
      ->type_name("ADDRESS")
      ->capture_default_str()
      ->group(group);
  add_port(app, "--port", config.port, "For routers; 0: any free one")->group(group);
  add_port(app, "--metrics-port", config.metrics_port, "Prometheus, /metrics")->group(group);
  add_port(app, "--health-port", config.health_port, "grpc.health.v1")->group(group);
  add_health_check_flag(app, config.host, config.health_port, group);
  add_tls_server_flags(app, config.tls, group);
  add_plaintext_flag(app, config.allow_plaintext, group);
}

}  // namespace

std::optional<int32_t> cuda_index(absl::string_view given) {
  int32_t index = 0;
  if (given == "cuda") return index;
  if (!absl::ConsumePrefix(&given, "cuda:") || !absl::SimpleAtoi(given, &index) || index < 0) {
    return std::nullopt;
  }
  return index;
}

std::optional<int> parse_worker_config(int argc, const char* const* argv, WorkerConfig& config) {
  CLI::App app("Serves one model to LCKV routers.", "lckv-worker");
  app.set_version_flag("--version", LCKV_VERSION);
  add_model_flags(app, config);
  add_simulation_flags(app, config);
  add_memory_flags(app, config);
  add_scheduling_flags(app, config);
  add_rank_flags(app, config);
  add_network_flags(app, config);
  add_logging_flags(app, config.logging);
  const std::optional<int> code = parse_flags(app, argc, argv);
  config.kv_cache_given = app.get_option("--kv-cache-memory")->count() > 0;
  return code;
}

int32_t device_of_rank(const WorkerConfig& config) {
  const bool is_given = config.rank < 0 || config.first_rank < 0;
  if (is_given || config.allow_shared_device) return config.device_index;
  return config.device_index + config.rank - config.first_rank;
}

absl::StatusOr<std::pair<std::string, uint16_t>> split_leader(const std::string& leader) {
  const size_t colon = leader.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(leader.substr(colon + 1), &port) || port > 0xffff) {
    return absl::InvalidArgumentError(
        absl::StrCat("--leader \"", leader, "\" is not HOST:PORT, as in 10.0.0.1:50063"));
  }
  return std::pair(leader.substr(0, colon), static_cast<uint16_t>(port));
}

namespace {

absl::Status check_simulation(const WorkerConfig& config) {
  if (config.device != Device::kSim) {
    if (config.sim_replicas == 1) return absl::OkStatus();
    return absl::InvalidArgumentError("--sim-replicas needs --device sim");
  }
  if (config.rank >= 0 || !config.leader.empty()) {
    return absl::InvalidArgumentError(
        "--device sim has all ranks of a replica in one process: no --rank, no --leader");
  }
  for (const uint16_t port : {config.port, config.metrics_port, config.health_port}) {
    if (port + config.sim_replicas - 1 > 0xffff) {
      return absl::InvalidArgumentError(absl::StrCat("port ", port, " plus --sim-replicas ",
                                                     config.sim_replicas, " goes beyond 65535"));
    }
  }
  return absl::OkStatus();
}

absl::Status check_shared_device(const WorkerConfig& config) {
  if (!config.allow_shared_device) return absl::OkStatus();
  if (config.device != Device::kCuda) {
    return absl::InvalidArgumentError("--allow-shared-device needs --device cuda:N");
  }
  if (!config.kv_cache_given) {
    return absl::InvalidArgumentError(
        "--allow-shared-device needs --kv-cache-memory: what a device has left is not shared out");
  }
  return absl::OkStatus();
}

absl::Status check_ranks(const WorkerConfig& config) {
  const int32_t size = config.tensor_parallel_size;
  if (!config.leader.empty()) {
    const auto leader = split_leader(config.leader);
    if (!leader.ok()) return leader.status();
    const absl::string_view host = absl::StripSuffix(absl::StripPrefix(leader->first, "["), "]");
    if (!is_loopback(std::string(host)) && !config.allow_plaintext) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--leader ", config.leader,
          " is beyond this machine: what ranks exchange within a step is never encrypted; "
          "--allow-plaintext says that nobody else is on their network"));
    }
  }
  const TlsClientFiles& tls = config.rank_tls.files;
  if (tls.ca.empty() != tls.certificate.empty() || tls.ca.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError(
        "--rank-tls-ca, --rank-tls-cert and --rank-tls-key belong together: all ranks give all");
  }
  if (config.rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("--rank ", config.rank,
                                                   " is not one of --tensor-parallel-size ", size,
                                                   ": 0 to ", size - 1));
  }
  if (config.rank >= 0 && size > 1 && config.leader.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rank ", config.rank, " needs --leader HOST:PORT"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status check_worker_config(const WorkerConfig& config) {
  if (config.kv_cache_dtype != NumberFormat::kAuto && config.dtype != NumberFormat::kAuto &&
      config.kv_cache_dtype != config.dtype) {
    return absl::InvalidArgumentError("--kv-cache-dtype must be --dtype, or auto");
  }
  if (config.max_num_seqs > config.max_num_batched_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max-num-seqs ", config.max_num_seqs, " exceeds --max-num-batched-tokens ",
        config.max_num_batched_tokens, ": every running sequence takes a row of a step"));
  }
  if (config.staging_rows > 0 && config.staging_rows <= config.max_num_seqs) {
    return absl::InvalidArgumentError(
        absl::StrCat("--staging-rows ", config.staging_rows, " must exceed --max-num-seqs ",
                     config.max_num_seqs, ": every running sequence holds a row"));
  }
  if (config.cpu_offload_gb > 0 && config.device != Device::kCuda) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cpu-offload-gb ", config.cpu_offload_gb, " needs --device cuda: ",
                     config.device == Device::kCpu ? "on the CPU weights are in host memory anyway"
                                                   : "--device sim does not simulate it"));
  }
  if (absl::Status status = check_simulation(config); !status.ok()) return status;
  if (absl::Status status = check_shared_device(config); !status.ok()) return status;
  if (absl::Status status = check_ranks(config); !status.ok()) return status;
  return check_plaintext(config.host, config.tls, config.allow_plaintext);
}

}  // namespace lckv
