// How tensors are cut, and that what is cut is the same model.
#include "worker/model/tensor_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/worker/checkpoint_writer.h"
#include "worker/model/checkpoint_files.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

using testing::HasSubstr;

ModelConfig model(const nlohmann::json& changes = nlohmann::json::object()) {
  nlohmann::json config = tiny_config();
  config.update({{"num_attention_heads", 8}, {"num_key_value_heads", 4}, {"hidden_size", 128}});
  config.update(changes);
  return parse_model_config(config.dump(), "").value();
}

std::string refusal(const ModelConfig& config, int32_t size) {
  const absl::Status status = check_tensor_parallel(config, size);
  EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status));
  return std::string(status.message());
}

TEST(TensorShard, SizesThatDoNotDivideAreRefusedWithThoseThatDo) {
  EXPECT_EQ(refusal(model(), 1), "");
  EXPECT_EQ(refusal(model(), 4), "");
  EXPECT_EQ(refusal(model(), 8), "");
  EXPECT_EQ(refusal(model(), 3),
            "--tensor-parallel-size 3: num_attention_heads 8 does not divide by it; "
            "valid for this model: 1, 2, 4, 8");
  EXPECT_THAT(refusal(model({{"intermediate_size", 50}}), 4),
              HasSubstr("intermediate_size 50 does not divide by it; valid for this model: 1, 2"));
  const ModelConfig twelve = model({{"num_attention_heads", 12},
                                    {"num_key_value_heads", 4},
                                    {"head_dim", 16},
                                    {"hidden_size", 192}});
  EXPECT_THAT(refusal(twelve, 3), HasSubstr("num_key_value_heads 4 neither divides"));
  EXPECT_THAT(refusal(twelve, 0), HasSubstr("below 1"));
}

TEST(TensorShard, KvHeadsAreSharedOutAndThenReplicated) {
  const ModelConfig config = model();
  EXPECT_EQ(shard_layers(config.layers, 2).layers[0].kv_heads, 2);
  EXPECT_EQ(shard_layers(config.layers, 8).layers[0].kv_heads, 1);
  int num_first = 0;
  for (int32_t rank = 0; rank < 8; ++rank) num_first += is_first_with_kv_heads(4, {rank, 8});
  EXPECT_EQ(num_first, 4);
  EXPECT_TRUE(is_first_with_kv_heads(4, {3, 4}));
}

// Every element of every tensor is held by exactly as many ranks as share it.
TEST(TensorShard, SlicesCoverEveryTensor) {
  nlohmann::json biased = {{"attention_bias", true}, {"vocab_size", 13}};
  const ModelConfig config = model(biased);
  for (const int32_t size : {1, 2, 4, 8}) {
    for (const TensorSpec& tensor : expected_tensors(config)) {
      SCOPED_TRACE(testing::Message() << tensor.name << " over " << size);
      const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
      std::vector<int> holders(tensor.num_elements());
      for (int32_t rank = 0; rank < size; ++rank) {
        const TensorSlice slice = slice_tensor(tensor, config, {rank, size});
        for (int64_t row = slice.row; row < slice.row + slice.rows; ++row) {
          for (int64_t i = 0; i < slice.columns; ++i) {
            ++holders.at(row * columns + slice.column + i);
          }
        }
      }
      int expected = 1;
      if (tensor.split == TensorSplit::kNone) expected = size;
      if (tensor.split == TensorSplit::kKvHeadRows && size > 4) expected = size / 4;
      EXPECT_THAT(holders, testing::Each(expected));
    }
  }
}

TEST(TensorShard, MadeUpSlicesAreThoseOfTheWholeModel) {
  const ModelConfig config = model({{"vocab_size", 40001}, {"intermediate_size", 8 * 4133}});
  const CheckpointFiles files;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const auto whole = WeightStore::dummy(config, {.dtype = dtype, .seed = 3}).value();
    for (const int32_t rank : {0, 3, 7}) {
      const auto part =
          WeightStore::dummy(config, {.dtype = dtype, .seed = 3, .shard = {rank, 8}}).value();
      EXPECT_EQ(content_fingerprint(files, *part), content_fingerprint(files, *whole));
      EXPECT_LT(part->total_bytes(), whole->total_bytes() / 7);
      for (const TensorView& tensor : part->tensors()) {
        const std::byte* const expected = whole->find(tensor.name)->data;
        const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
        const TensorSlice& slice = tensor.slice;
        bool same = true;
        for (int64_t row = slice.row; row < slice.row + slice.rows; ++row) {
          const size_t at = (row * columns + slice.column) * dtype_bytes(dtype);
          same = same && std::memcmp(tensor.data + at, expected + at,
                                     slice.columns * dtype_bytes(dtype)) == 0;
        }
        EXPECT_TRUE(same) << tensor.name << " of rank " << rank;
      }
    }
  }
}

// What a file's fingerprint says does not depend on who reads it.
TEST(TensorShard, RanksOfOneCheckpointHaveOneFingerprint) {
  TemporaryFolder folder;
  write_checkpoint(folder, tiny_config());
  const ModelConfig config = parse_model_config(tiny_config().dump(), "").value();
  const CheckpointFiles files = read_checkpoint_files(folder.path()).value();
  const auto whole = WeightStore::open(folder.path(), config).value();
  const auto part = WeightStore::open(folder.path(), config, {1, 2}).value();
  EXPECT_EQ(content_fingerprint(files, *part), content_fingerprint(files, *whole));
  EXPECT_LT(part->total_bytes(), whole->total_bytes());
}

}  // namespace
}  // namespace lckv
