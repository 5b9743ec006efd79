// Collectives whose calls are seen as operations of the rank that makes them.
#pragma once

#include <memory>

#include "kernels/collectives.h"
#include "worker/engine/rank_progress.h"

namespace lckv {

// `progress` must outlive the result.
std::unique_ptr<Collectives> timed_collectives(std::unique_ptr<Collectives> ranks,
                                               RankProgress& progress);

}  // namespace lckv
