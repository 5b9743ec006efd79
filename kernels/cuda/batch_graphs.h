// BatchGraphs: batches (Ops::repeat_batch) recorded as CUDA graphs. The first batch of a key is run
// as any other, and what it names in host memory is noted; the second is recorded, with places of
// their own for its arrays and plans of attention; of those that follow the arrays are read again,
// sent in one piece to the same places, and the graph is launched. Where a plan outgrows its room
// the batch is recorded anew; where it exceeds what there is, it runs as any other.
//
// Owner: the CUDA backend. Thread: its caller's. Takes its memory at the start, but for what the
// driver keeps of a graph.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/recorded_rooms.h"
#include "kernels/ops.h"

namespace lckv {

class BatchGraphs {
 public:
  BatchGraphs(bool records, UploadRing& uploads, CudaAttention& attention, cudaStream_t stream);
  ~BatchGraphs();
  BatchGraphs(const BatchGraphs&) = delete;
  BatchGraphs& operator=(const BatchGraphs&) = delete;

  // Begins a batch of uploads and attention; true: the batch has been repeated.
  bool begin(const BatchKey& key);
  void end();
  // In a batch too, which then goes no further: what failed in it is no batch to repeat.
  void forget();
  // Whether batches of `rows` are recorded.
  bool records(int32_t rows) const { return records_batches_ && rows <= kRecordedRowsMax; }
  void stop_recording() { records_batches_ = false; }

 private:
  enum class State : uint8_t { kNone, kPlain, kNoting, kRecording, kRepeated, kForgotten };
  // One key's.
  struct Record {
    BatchKey key;
    uint64_t last_used = 0;
    uint64_t not_before = 0;      // recorded again
    std::byte* region = nullptr;  // where its arrays and plans lie, on the device
    bool is_noted = false;        // what follows is known
    std::vector<UploadedArray> arrays;
    std::vector<PlacedPlan> plans;
    size_t bytes = 0;                 // of the region
    cudaGraphExec_t graph = nullptr;  // null: not recorded
    // Of the attention's memory, which is elsewhere when it has grown. Not an address: ranks whose
    // exchanges are recorded are to agree on what has moved.
    size_t scratch_bytes = 0;
  };

  Record& record_of(const BatchKey& key);
  void drop_graph(Record& record);
  // Plans the calls anew, into plans_. False where one has no plan of its own that would do.
  bool plan(const Record& record);
  bool fits(const Record& record) const;
  // Gives everything its place. False where there is too little room.
  bool make_room(Record& record);
  bool make_room(Record& record, bool keeps_more) const;
  void note(Record& record) const;
  void end_recording(Record& record);
  void launch(const Record& record);

  bool records_batches_;
  UploadRing& uploads_;
  CudaAttention& attention_;
  const cudaStream_t stream_;
  const std::unique_ptr<CudaBuffer> regions_;  // null where nothing is recorded
  std::vector<Record> records_;
  uint64_t num_begun_ = 0;
  // Of the batch at hand.
  State state_ = State::kNone;
  Record* record_ = nullptr;
  std::vector<AttentionPlan> plans_;
};

}  // namespace lckv
