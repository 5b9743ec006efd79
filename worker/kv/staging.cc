#include "worker/kv/staging.h"

#include "kernels/check.h"

namespace lckv {

Staging::Staging(int32_t num_groups, int32_t rows_per_group)
    : rows_per_group_(rows_per_group), groups_(num_groups) {
  LCKV_CHECK(num_groups == 0 || rows_per_group > 0);
  for (Group& group : groups_) {
    group.taken.assign(rows_per_group, false);
    for (int32_t row = rows_per_group - 1; row >= 0; --row) group.free.push_back(StagingRow{row});
  }
}

Staging::~Staging() {
  for (int32_t group = 0; group < num_groups(); ++group) {
    LCKV_CHECK(num_free(group) == rows_per_group_);
  }
}

StagingRow Staging::take(int32_t group) {
  Group& from = groups_[group];
  LCKV_CHECK(!from.free.empty());
  const StagingRow row = from.free.back();
  from.free.pop_back();
  LCKV_CHECK(!from.taken[raw(row)]);
  from.taken[raw(row)] = true;
  return row;
}

void Staging::give_back(int32_t group, StagingRow row) {
  Group& to = groups_[group];
  LCKV_CHECK(to.taken[raw(row)]);
  to.taken[raw(row)] = false;
  to.free.push_back(row);
}

int32_t Staging::num_free(int32_t group) const {
  return static_cast<int32_t>(groups_[group].free.size());
}

}  // namespace lckv
