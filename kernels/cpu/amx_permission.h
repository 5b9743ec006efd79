// Whether this process may use AMX tiles.
#pragma once

namespace lckv {

// Asks the kernel for the tile state of this process and proves it in a forked child that executes
// tile instructions: CPUID alone says too much on some machines and too little on others. Once, at
// start.
bool ask_for_amx();

}  // namespace lckv
