// NCCL, loaded when the ranks of a replica are connected: programs without several GPUs need none.
#pragma once

#include <nccl.h>

#include "absl/status/statusor.h"

namespace lckv {

// Its functions, by their names without the prefix.
struct NcclLibrary {
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclCommGetAsyncError) get_async_error = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetLastError) last_error = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
};

// It stays loaded. Errors: FailedPrecondition where it is not to be had, or lacks a function.
absl::StatusOr<NcclLibrary> load_nccl_library();

}  // namespace lckv
