// Staging: which rows of each cyclic group's staging are free. Ids only, no bytes.
//
// Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv/ids.h"

namespace lckv {

class Staging {
 public:
  Staging(int32_t num_groups, int32_t rows_per_group);
  ~Staging();  // every row was given back

  // The caller asks for no more than num_free(group).
  StagingRow take(int32_t group);
  void give_back(int32_t group, StagingRow row);

  int32_t num_free(int32_t group) const;
  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  int32_t rows_per_group() const { return rows_per_group_; }

 private:
  struct Group {
    std::vector<StagingRow> free;
    std::vector<bool> taken;  // per row
  };
  const int32_t rows_per_group_;
  std::vector<Group> groups_;
};

}  // namespace lckv
