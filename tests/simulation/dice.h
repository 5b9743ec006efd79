// All chance of a simulated fleet, from one seed.
#pragma once

#include <random>

namespace lckv::fleet_simulation {

using Dice = std::mt19937_64;

}  // namespace lckv::fleet_simulation
