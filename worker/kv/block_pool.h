// BlockPool: which blocks of a memory are free. Ids only, no bytes.
//
// BasicBlockRef is a shared hold on one block: copies count up, and the last one dropped returns
// the block to its pool, which must outlive it. Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "worker/kv/ids.h"

namespace lckv {

template <class Id>
class BasicBlockPool;

template <class Id>
class BasicBlockRef {
 public:
  BasicBlockRef(const BasicBlockRef& other) : pool_(other.pool_), id_(other.id_) {
    if (pool_ != nullptr) pool_->hold(id_);
  }
  BasicBlockRef(BasicBlockRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  BasicBlockRef& operator=(BasicBlockRef other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~BasicBlockRef() {
    if (pool_ != nullptr) pool_->drop(id_);
  }

  Id id() const {
    LCKV_CHECK(pool_ != nullptr);
    return id_;
  }

 private:
  friend class BasicBlockPool<Id>;
  BasicBlockRef(BasicBlockPool<Id>* pool, Id id) : pool_(pool), id_(id) {}

  BasicBlockPool<Id>* pool_;
  Id id_;
};

template <class Id>
class BasicBlockPool {
 public:
  explicit BasicBlockPool(int32_t num_blocks) : holds_(num_blocks, 0) {
    free_.reserve(num_blocks);
    for (int32_t id = num_blocks - 1; id >= 0; --id) free_.push_back(Id{id});
  }
  ~BasicBlockPool() { LCKV_CHECK(num_free() == num_blocks()); }
  BasicBlockPool(const BasicBlockPool&) = delete;
  BasicBlockPool& operator=(const BasicBlockPool&) = delete;

  // Nothing where no block is free.
  std::optional<BasicBlockRef<Id>> take() {
    if (free_.empty()) return std::nullopt;
    const Id id = free_.back();
    free_.pop_back();
    LCKV_CHECK(holds_[raw(id)] == 0);
    holds_[raw(id)] = 1;
    return BasicBlockRef<Id>(this, id);
  }

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_blocks() const { return static_cast<int32_t>(holds_.size()); }

 private:
  friend class BasicBlockRef<Id>;
  void hold(Id id) {
    LCKV_CHECK(holds_[raw(id)] > 0);
    ++holds_[raw(id)];
  }
  void drop(Id id) {
    LCKV_CHECK(holds_[raw(id)] > 0);
    if (--holds_[raw(id)] == 0) free_.push_back(id);
  }

  std::vector<int32_t> holds_;  // per block
  std::vector<Id> free_;
};

using BlockPool = BasicBlockPool<BlockId>;
using BlockRef = BasicBlockRef<BlockId>;
using HostBlockPool = BasicBlockPool<HostBlockId>;
using HostBlockRef = BasicBlockRef<HostBlockId>;

}  // namespace lckv
