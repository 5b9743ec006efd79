#include "kernels/cuda/batch_graphs.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Some three ranges of nine numbers of rows each, and some to spare.
constexpr size_t kRecords = 32;
// Of one: histories of 64 rows, 4000 tokens each in blocks of 16, for 32 units.
constexpr size_t kRegionBytes = size_t{4} << 20;
// Batches that are run as any other after one that is too large to be recorded.
constexpr uint64_t kPause = 256;
constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

PlanRoom room_of(const AttentionPlan& plan, int32_t rows) {
  const PlanSize size = plan.size();
  return {.size = {.blocks = room_for(size.blocks),
                   .staged_rows = room_for(size.staged_rows),
                   .runs = room_for(size.runs),
                   .segments = static_cast<size_t>(rows),
                   .seen = static_cast<size_t>(rows),
                   .items = room_for(size.items),
                   .merges = room_for(size.merges)},
          .num_partials = static_cast<int32_t>(room_for(static_cast<size_t>(plan.num_partials)))};
}

// That plans of either have room in: batches of one key may take turns.
PlanRoom larger(const PlanRoom& left, const PlanRoom& right) {
  const auto most = [&](auto member) { return std::max(left.size.*member, right.size.*member); };
  return {.size = {.blocks = most(&PlanSize::blocks),
                   .staged_rows = most(&PlanSize::staged_rows),
                   .runs = most(&PlanSize::runs),
                   .segments = most(&PlanSize::segments),
                   .seen = most(&PlanSize::seen),
                   .items = most(&PlanSize::items),
                   .merges = most(&PlanSize::merges)},
          .num_partials = std::max(left.num_partials, right.num_partials)};
}

bool fits(const AttentionPlan& plan, const PlanRoom& room) {
  const PlanSize size = plan.size();
  const PlanSize& most = room.size;
  return size.blocks <= most.blocks && size.staged_rows <= most.staged_rows &&
         size.runs <= most.runs && size.segments <= most.segments && size.seen <= most.seen &&
         size.items <= most.items && size.merges <= most.merges &&
         plan.num_partials <= room.num_partials;
}

}  // namespace

BatchGraphs::BatchGraphs(bool records, UploadRing& uploads, CudaAttention& attention,
                         cudaStream_t stream)
    : records_batches_(records),
      uploads_(uploads),
      attention_(attention),
      stream_(stream),
      regions_(records ? std::make_unique<CudaBuffer>(kRecords * kRegionBytes, stream, Cleared::kNo)
                       : nullptr) {
  records_.reserve(kRecords);
}

BatchGraphs::~BatchGraphs() { forget(); }

void BatchGraphs::forget() {
  if (state_ == State::kRecording) {
    cudaGraph_t graph = nullptr;
    // Whatever failed may have ended it.
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
  }
  if (state_ != State::kNone) state_ = State::kForgotten;
  record_ = nullptr;
  for (Record& record : records_) drop_graph(record);
  records_.clear();
}

void BatchGraphs::drop_graph(Record& record) {
  if (record.graph == nullptr) return;
  // One that is under way is freed when it is done.
  check_cuda(cudaGraphExecDestroy(std::exchange(record.graph, nullptr)), "freeing a graph");
}

BatchGraphs::Record& BatchGraphs::record_of(const BatchKey& key) {
  auto record = std::find_if(records_.begin(), records_.end(),
                             [&](const Record& other) { return other.key == key; });
  if (record == records_.end() && records_.size() < kRecords) {
    std::byte* const region = regions_->data() + records_.size() * kRegionBytes;
    records_.push_back({.key = key, .region = region});
    record = records_.end() - 1;
  } else if (record == records_.end()) {
    record = std::min_element(
        records_.begin(), records_.end(),
        [](const Record& left, const Record& right) { return left.last_used < right.last_used; });
    drop_graph(*record);
    *record = {.key = key, .region = record->region};
  }
  record->last_used = ++num_begun_;
  return *record;
}

bool BatchGraphs::begin(const BatchKey& key) {
  LCKV_CHECK(state_ == State::kNone);
  state_ = State::kPlain;
  if (records(key.rows)) {
    record_ = &record_of(key);
    if (!record_->is_noted) {
      state_ = State::kNoting;
    } else if (num_begun_ >= record_->not_before && plan(*record_)) {
      const bool is_recorded = record_->graph != nullptr &&
                               record_->scratch_bytes == attention_.scratch_bytes() &&
                               fits(*record_);
      if (is_recorded) {
        launch(*record_);
        state_ = State::kRepeated;
        return true;
      }
      drop_graph(*record_);
      if (make_room(*record_)) {
        record_->scratch_bytes = attention_.scratch_bytes();
        state_ = State::kRecording;
        uploads_.begin_batch(record_->arrays);
        attention_.begin_batch(record_->plans);
        check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                   "beginning to record a batch");
        return false;
      }
      record_->not_before = num_begun_ + kPause;
    }
  }
  uploads_.begin_batch();
  attention_.begin_batch();
  return false;
}

void BatchGraphs::end() {
  if (state_ == State::kNoting) note(*record_);
  if (state_ != State::kRepeated) {
    attention_.end_batch();
    uploads_.end_batch();
  }
  if (state_ == State::kRecording) end_recording(*record_);
  state_ = State::kNone;
  record_ = nullptr;
  plans_.clear();
}

void BatchGraphs::note(Record& record) const {
  record.arrays = uploads_.arrays();
  for (const AttentionArgs& args : attention_.planned()) record.plans.push_back({.args = args});
  record.is_noted = true;
}

bool BatchGraphs::plan(const Record& record) {
  plans_.clear();
  for (const PlacedPlan& placed : record.plans) {
    auto plan = attention_.plan_alone(placed.args);
    if (!plan) return false;
    plans_.push_back(*std::move(plan));
  }
  return true;
}

bool BatchGraphs::fits(const Record& record) const {
  for (size_t i = 0; i < plans_.size(); ++i) {
    if (!lckv::fits(plans_[i], record.plans[i].room)) return false;
  }
  return true;
}

bool BatchGraphs::make_room(Record& record) {
  return make_room(record, /*keeps_more=*/true) || make_room(record, /*keeps_more=*/false);
}

bool BatchGraphs::make_room(Record& record, bool keeps_more) const {
  record.bytes = 0;
  for (UploadedArray& array : record.arrays) {
    array.device = record.region + record.bytes;
    record.bytes += aligned(array.bytes);
  }
  for (size_t i = 0; i < plans_.size(); ++i) {
    PlacedPlan& placed = record.plans[i];
    const PlanRoom room = room_of(plans_[i], record.key.rows);
    placed.room = keeps_more ? larger(placed.room, room) : room;
    if (!attention_.has_shares(placed.args, placed.room)) return false;
    placed.at = record.region + record.bytes;
    record.bytes += aligned(placed.room.size.bytes());
  }
  return record.bytes <= kRegionBytes;
}

void BatchGraphs::end_recording(Record& record) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamEndCapture(stream_, &graph), "recording a batch");
  check_cuda(cudaGraphInstantiate(&record.graph, graph, 0), "preparing a recorded batch");
  check_cuda(cudaGraphDestroy(graph), "freeing a graph");
  launch(record);
}

void BatchGraphs::launch(const Record& record) {
  std::byte* const to = uploads_.take(record.bytes);
  for (const UploadedArray& array : record.arrays) {
    if (array.bytes > 0)
      std::memcpy(to + (array.device - record.region), array.values, array.bytes);
  }
  for (size_t i = 0; i < plans_.size(); ++i) {
    const PlacedPlan& placed = record.plans[i];
    write_plan(plans_[i], placed.room, to + (placed.at - record.region));
  }
  uploads_.send_to(record.region);
  check_cuda(cudaGraphLaunch(record.graph, stream_), "repeating a batch");
}

}  // namespace lckv
