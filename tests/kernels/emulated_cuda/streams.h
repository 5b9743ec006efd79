// Which of the emulated streams goes ahead where no event says it. Calls that are not ordered by
// events give right numbers in one order of the two at most.
#pragma once

#include <cstdint>

namespace emulated_cuda {

// Streams that go ahead do what they are to do as it is called, the others when somebody waits for
// them: kernels long before copies of other streams (what reads what is being copied reads what was
// there before), or long after (what was to be read has been copied over).
enum class Ahead : uint8_t { kKernels, kCopies };
// kKernels unless said otherwise. While nothing is to be done on any stream.
void let_ahead(Ahead ahead);
// What all streams have done so far.
uint64_t num_done();

}  // namespace emulated_cuda
