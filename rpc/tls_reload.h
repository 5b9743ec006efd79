// TlsReload: certificates, keys and CAs that others replace while a program runs.
//
// gRPC's own watcher takes whatever a file holds, and with what it cannot use no connection is made
// any more. So it reads copies, which get only what has been checked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/memory_file.h"

namespace lckv {

struct FlaggedFile {
  std::string flag;
  std::string path;
};

// Owner: whoever has credentials made from it. One thread. Never polled: what was read first holds.
class TlsReload {
 public:
  // Where gRPC is to read instead. InvalidArgument naming the flag and the file that is wrong.
  // `key` belongs to the leaf in `certificate`; the result holds both.
  absl::StatusOr<std::string> add_pair(const FlaggedFile& certificate, const FlaggedFile& key);
  absl::StatusOr<std::string> add_ca(const FlaggedFile& ca);

  // Looks at the files where a second has passed, and takes over what is right. What is wrong at
  // two looks is logged once, and when it is right again: certificate and key may be replaced one
  // after the other.
  void poll(absl::Time now);
  // What some file says now could not be taken over: an older state holds.
  bool stale() const;

 private:
  struct Part {
    std::vector<FlaggedFile> files;  // one CA, or a certificate and its key
    std::string taken;
    MemoryFile copy;
    std::string wrong;   // at the last look; empty: nothing
    std::string logged;  // what of it was logged and still holds
  };

  absl::StatusOr<std::string> add(std::vector<FlaggedFile> files);
  static absl::Status take_over(Part& part);
  static void look(Part& part);

  std::vector<std::unique_ptr<Part>> parts_;
  absl::Time due_ = absl::InfinitePast();
};

}  // namespace lckv
