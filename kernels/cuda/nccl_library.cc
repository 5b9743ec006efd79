#include "kernels/cuda/nccl_library.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/shared_library.h"

namespace lckv {

absl::StatusOr<NcclLibrary> load_nccl_library() {
  auto library = SharedLibrary::load(absl::StrCat("libnccl.so.", NCCL_MAJOR));
  if (!library.ok()) return library.status();
  NcclLibrary nccl;
  library->find("ncclGetUniqueId", nccl.get_unique_id);
  library->find("ncclCommInitRankConfig", nccl.init_rank);
  library->find("ncclCommAbort", nccl.abort);
  library->find("ncclCommGetAsyncError", nccl.get_async_error);
  library->find("ncclGetErrorString", nccl.error_string);
  library->find("ncclGetLastError", nccl.last_error);
  library->find("ncclAllReduce", nccl.all_reduce);
  library->find("ncclAllGather", nccl.all_gather);
  library->find("ncclBroadcast", nccl.broadcast);
  if (absl::Status status = library->complete(); !status.ok()) return status;
  return nccl;
}

}  // namespace lckv
