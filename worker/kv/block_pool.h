// BlockPool: which blocks of a memory are free. Ids only, no bytes.
//
// BasicBlockRef is a shared hold on one block: copies count up, and the last one dropped returns
// the block to its pool, which must outlive it. A block that is kept is then idle: free like the
// others, but what it holds can still be had until it is forgotten. Every call takes constant time.
// Owner and only thread: the scheduler's.
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
  explicit BasicBlockPool(int32_t num_blocks) : blocks_(num_blocks + 1) {
    blank_.reserve(num_blocks);
    for (int32_t id = num_blocks - 1; id >= 0; --id) blank_.push_back(Id{id});
    idle_end().previous = idle_end().next = num_blocks;
  }
  ~BasicBlockPool() { LCKV_CHECK(num_free() == num_blocks()); }
  BasicBlockPool(const BasicBlockPool&) = delete;
  BasicBlockPool& operator=(const BasicBlockPool&) = delete;

  // Nothing where no block is blank: held by nobody and not kept.
  std::optional<BasicBlockRef<Id>> take() {
    if (blank_.empty()) return std::nullopt;
    const Id id = blank_.back();
    blank_.pop_back();
    LCKV_CHECK(block(id).num_holds == 0 && !block(id).kept);
    block(id).num_holds = 1;
    return BasicBlockRef<Id>(this, id);
  }

  // A held block is kept from now on: idle once nobody holds it.
  void keep(Id id) {
    LCKV_CHECK(block(id).num_holds > 0 && !block(id).kept);
    block(id).kept = true;
  }
  // It is not kept any more: blank at once where nobody holds it.
  void forget(Id id) {
    LCKV_CHECK(block(id).kept);
    block(id).kept = false;
    if (block(id).num_holds > 0) return;
    unlink(id);
    blank_.push_back(id);
  }
  // A hold on a kept block, idle or not.
  BasicBlockRef<Id> share(Id id) {
    LCKV_CHECK(block(id).kept);
    if (block(id).num_holds++ == 0) unlink(id);
    return BasicBlockRef<Id>(this, id);
  }
  // The idle block that has been so for longest.
  std::optional<Id> oldest_idle() const {
    if (num_idle_ == 0) return std::nullopt;
    return Id{blocks_.back().next};
  }

  int32_t num_blank() const { return static_cast<int32_t>(blank_.size()); }
  int32_t num_idle() const { return num_idle_; }
  int32_t num_free() const { return num_blank() + num_idle_; }
  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()) - 1; }
  int32_t num_holds(Id id) const { return blocks_[raw(id)].num_holds; }

 private:
  friend class BasicBlockRef<Id>;
  struct Block {
    int32_t num_holds = 0;
    bool kept = false;
    // Of the ring of idle blocks, oldest first, which the last entry closes; while idle.
    int32_t previous = 0;
    int32_t next = 0;
  };

  Block& block(Id id) { return blocks_[raw(id)]; }
  Block& idle_end() { return blocks_.back(); }
  void hold(Id id) {
    LCKV_CHECK(block(id).num_holds > 0);
    ++block(id).num_holds;
  }
  void drop(Id id) {
    LCKV_CHECK(block(id).num_holds > 0);
    if (--block(id).num_holds > 0) return;
    if (block(id).kept) {
      link_newest(id);
    } else {
      blank_.push_back(id);
    }
  }
  void link_newest(Id id) {
    block(id).previous = idle_end().previous;
    block(id).next = num_blocks();
    blocks_[idle_end().previous].next = raw(id);
    idle_end().previous = raw(id);
    ++num_idle_;
  }
  void unlink(Id id) {
    blocks_[block(id).previous].next = block(id).next;
    blocks_[block(id).next].previous = block(id).previous;
    --num_idle_;
  }

  std::vector<Block> blocks_;  // by id, and the ring's end
  std::vector<Id> blank_;
  int32_t num_idle_ = 0;
};

using BlockPool = BasicBlockPool<BlockId>;
using BlockRef = BasicBlockRef<BlockId>;
using HostBlockPool = BasicBlockPool<HostBlockId>;
using HostBlockRef = BasicBlockRef<HostBlockId>;

}  // namespace lckv
