// What our collectives use of NCCL, between threads of the host: each is a rank with an emulated
// device. An exchange is done when the last rank has asked for it; until then its stream is busy.
#pragma once

#include <cstddef>

#include "tests/kernels/emulated_cuda/cuda_runtime.h"

#define NCCL_MAJOR 2

using ncclComm_t = struct EmulatedComm*;
struct ncclUniqueId {
  char internal[128];
};
enum ncclResult_t {
  ncclSuccess = 0,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};
enum ncclDataType_t { ncclInt8, ncclFloat32 };
enum ncclRedOp_t { ncclSum };
struct ncclConfig_t {
  int blocking;
};
// As if it were not set.
#define NCCL_CONFIG_INITIALIZER \
  { -1 }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
// Waits until all ranks have come, as long as that takes.
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error);
const char* ncclGetErrorString(ncclResult_t result);
const char* ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream);

namespace emulated_nccl {

// Whether ranks that connect from now on are refused, as NCCL does with devices that it cannot use.
void refuse(bool refuses);

}  // namespace emulated_nccl
