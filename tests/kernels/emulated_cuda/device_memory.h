// The stand-in's device memory, which the host may not touch but through the functions of the
// runtime, each piece before a page that nobody may.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace emulated_cuda {

// Of all ranks' devices together.
inline constexpr size_t kDeviceBytes = size_t{1} << 30;

class Memory {
 public:
  void* allocate(size_t bytes);
  void free(void* begin);
  bool holds(const void* at);
  size_t used();
  size_t size(void* begin);
  // Of whoever uses the device alone.
  std::recursive_mutex& device() { return device_; }
  // While anybody has opened it, all may touch it.
  void open();
  void close();

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kAlignment = 16;
  static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

  struct Piece {
    void* base = nullptr;
    size_t length = 0;
  };
  void allow(const Piece& piece) const;

  std::recursive_mutex device_;
  std::mutex mutex_;  // of what follows
  std::map<void*, Piece> pieces_;
  size_t used_ = 0;
  int num_open_ = 0;
};

Memory& memory();

// While a kernel does something that may wait for kernels of other ranks.
class SharedAccess {
 public:
  SharedAccess() { memory().open(); }
  ~SharedAccess() { memory().close(); }
  SharedAccess(const SharedAccess&) = delete;
  SharedAccess& operator=(const SharedAccess&) = delete;
};

// While the device does anything else.
class Access {
 private:
  const std::lock_guard<std::recursive_mutex> lock_{memory().device()};
  const SharedAccess access_;
};

}  // namespace emulated_cuda
