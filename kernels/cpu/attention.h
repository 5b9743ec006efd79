// Attention of the CPU backend; see AttentionArgs for what is computed.
#pragma once

#include <memory>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/threads.h"
#include "kernels/ops.h"

namespace lckv {

// Owner: the CPU backend. Thread: its caller's. Keeps the threads' scratch memory from call to
// call.
class CpuAttention {
 public:
  explicit CpuAttention(CpuThreads& threads) : threads_(threads) {}
  void run(const AttentionArgs& args);

 private:
  CpuThreads& threads_;
  std::unique_ptr<AnonymousMemory> scratch_;
};

}  // namespace lckv
