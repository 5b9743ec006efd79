#include "rpc/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace lckv {
namespace {

// Where a system insists, memory has to be told from programs, which older ones do not know of.
int create() {
  constexpr unsigned kNoExecSeal = 8;  // MFD_NOEXEC_SEAL, of Linux 6.3
  const int descriptor = memfd_create("lckv", MFD_CLOEXEC | kNoExecSeal);
  if (descriptor >= 0 || errno != EINVAL) return descriptor;
  return memfd_create("lckv", MFD_CLOEXEC);
}

absl::Status failed(const char* call) {
  return absl::InternalError(absl::StrCat(call, ": ", std::strerror(errno)));
}

bool write_all(int descriptor, const std::string& content) {
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = ::write(descriptor, content.data() + done, content.size() - done);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace

absl::Status MemoryFile::write(const std::string& content) {
  const int fresh = create();
  if (fresh < 0) return failed("memfd_create");
  // gRPC tells by the seconds of this time whether a file changed while it read.
  const timespec time{.tv_sec = ++num_writes_};
  const timespec times[2] = {time, time};
  if (!write_all(fresh, content) || futimens(fresh, times) != 0) {
    absl::Status status = failed("write");
    close(fresh);
    return status;
  }
  if (descriptor_ < 0) {
    descriptor_ = fresh;
    return absl::OkStatus();
  }
  const bool exchanged = dup3(fresh, descriptor_, O_CLOEXEC) >= 0;
  absl::Status status = exchanged ? absl::OkStatus() : failed("dup3");
  close(fresh);
  return status;
}

std::string MemoryFile::path() const { return absl::StrCat("/proc/self/fd/", descriptor_); }

}  // namespace lckv
