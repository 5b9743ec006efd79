// WeightStore: a checkpoint's tensors in host memory, mapped from its files or made up.
//
// Owner: whoever loads the model; the embedding table may be read from here as long as the model
// lives, so the store outlives it. Views stay valid until the store is dropped. find() may be
// called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"
#include "worker/model/mapped_memory.h"
#include "worker/model/model_config.h"
#include "worker/model/tensor_shard.h"

namespace lckv {

// A whole tensor, of which a rank reads its slice only.
struct TensorView {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // row-major; aligned to the dtype
  uint64_t bytes = 0;
  TensorSlice slice;  // what the store's shard holds of it
  uint64_t slice_bytes() const {
    return static_cast<uint64_t>(slice.num_elements()) * dtype_bytes(dtype);
  }
};

struct DummyWeights {
  DType dtype = DType::kBFloat16;
  uint64_t seed = 0;
  int32_t num_threads = 1;  // does not change the values
  TensorShard shard;        // neither does this
};

class WeightStore {
 public:
  // model.safetensors, or the shards that model.safetensors.index.json names. Every expected tensor
  // must be there with its shape, as float32, bfloat16 or float16; others are ignored. Errors name
  // file and tensor: NotFound (no file, no tensor), InvalidArgument (a broken file, a wrong shape
  // or dtype).
  static absl::StatusOr<std::unique_ptr<WeightStore>> open(const std::string& folder,
                                                           const ModelConfig& config,
                                                           TensorShard shard = {});
  // Random weights from the config alone: norms 1, biases 0, the rest uniform with a standard
  // deviation of 0.02. Only slices, and what fingerprints look at, take memory and are made up.
  // ResourceExhausted where the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<WeightStore>> dummy(const ModelConfig& config,
                                                            const DummyWeights& options);

  // Null where the checkpoint is not expected to have it.
  const TensorView* find(absl::string_view name) const;
  // In the order of expected_tensors().
  const std::vector<TensorView>& tensors() const { return tensors_; }
  TensorShard shard() const { return shard_; }
  // Of all slices; of those that every rank holds whole.
  uint64_t total_bytes() const;
  uint64_t replicated_bytes() const;
  // Gives the tensor's memory back once its values are elsewhere. Mapped values are read from the
  // file again if looked at later, made-up ones are zero from then on.
  void forget(const TensorView& tensor) const;

 private:
  explicit WeightStore(TensorShard shard) : shard_(shard) {}
  void add(TensorView tensor);

  const TensorShard shard_;
  std::vector<MappedMemory> memory_;
  std::vector<TensorView> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;  // name -> entry of tensors_
};

}  // namespace lckv
