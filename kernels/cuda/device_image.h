// Whether the program holds kernels that the current device can run.
#pragma once

namespace lckv {

bool has_kernels_for_this_device();

}  // namespace lckv
