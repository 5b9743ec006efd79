// WeightStore::dummy: weights from the config alone.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "kernels/check.h"
#include "kernels/float16.h"
#include "worker/model/checkpoint_files.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

// Values of dummy tensors are functions of (seed, place): the number of threads cannot change them.
struct DummyPiece {
  std::byte* data = nullptr;
  size_t bytes = 0;
  uint64_t first_word = 0;
  enum class Kind : uint8_t { kRandom, kOnes, kZeros } kind = Kind::kRandom;
};

// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over a counter.
uint64_t mix(uint64_t counter) {
  uint64_t x = counter * 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint16_t truncated_bfloat16(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// Uniform with a standard deviation of 0.02.
const float kDummyHalfWidth = 0.02F * std::sqrt(3.0F);

template <class Element, class Convert>
void fill_random(const DummyPiece& piece, uint64_t seed, Convert convert) {
  constexpr size_t kPerWord = sizeof(uint64_t) / sizeof(Element);
  const size_t count = piece.bytes / sizeof(Element);
  const uint64_t base = mix(seed) + piece.first_word;
  auto* out = reinterpret_cast<Element*>(piece.data);
  size_t done = 0;
  for (; done + kPerWord <= count; done += kPerWord) {
    const uint64_t word = mix(base + done / kPerWord);
    for (size_t lane = 0; lane < kPerWord; ++lane) {
      out[done + lane] = convert(word >> (lane * 8 * sizeof(Element)));
    }
  }
  const uint64_t word = mix(base + done / kPerWord);
  for (size_t lane = 0; done + lane < count; ++lane) {
    out[done + lane] = convert(word >> (lane * 8 * sizeof(Element)));
  }
}

void fill_piece(const DummyPiece& piece, DType dtype, uint64_t seed) {
  if (piece.kind == DummyPiece::Kind::kZeros) return;  // as the memory came
  const bool ones = piece.kind == DummyPiece::Kind::kOnes;
  if (dtype == DType::kFloat32) {
    const float scale = kDummyHalfWidth / 2147483648.0F;
    fill_random<float>(piece, seed, [ones, scale](uint64_t bits) {
      return ones ? 1.0F : static_cast<float>(static_cast<int32_t>(bits)) * scale;
    });
    return;
  }
  const float scale = kDummyHalfWidth / 32768.0F;
  fill_random<uint16_t>(piece, seed, [ones, scale, dtype](uint64_t bits) {
    const float value = ones ? 1.0F : static_cast<float>(static_cast<int16_t>(bits)) * scale;
    return dtype == DType::kFloat16 ? float_to_float16(value) : truncated_bfloat16(value);
  });
}

void fill_pieces(const std::vector<DummyPiece>& pieces, const DummyWeights& options) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      fill_piece(pieces[i], options.dtype, options.seed);
    }
  };
  std::vector<std::thread> threads;
  for (int32_t i = 1; i < options.num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

// Bytes of a tensor: [first, second).
using ByteRange = std::pair<uint64_t, uint64_t>;

// What has to be there: the slice, and what a fingerprint looks at, so that it is the whole
// model's. In whole words, ascending; ranges with nothing to gain from the gap between them are
// one.
std::vector<ByteRange> needed_ranges(const TensorView& tensor) {
  constexpr uint64_t kSmallGap = 4096;
  const uint64_t element = dtype_bytes(tensor.dtype);
  const TensorSlice& slice = tensor.slice;
  const uint64_t row_bytes = tensor.bytes / static_cast<uint64_t>(tensor.shape[0]);
  std::vector<ByteRange> ranges = fingerprint_samples(tensor.bytes);
  for (int64_t row = slice.row; row < slice.row + slice.rows; ++row) {
    const uint64_t begin =
        static_cast<uint64_t>(row) * row_bytes + static_cast<uint64_t>(slice.column) * element;
    ranges.emplace_back(begin, begin + static_cast<uint64_t>(slice.columns) * element);
  }
  std::sort(ranges.begin(), ranges.end());
  std::vector<ByteRange> merged;
  for (auto [begin, end] : ranges) {
    begin -= begin % sizeof(uint64_t);
    end =
        std::min((end + sizeof(uint64_t) - 1) / sizeof(uint64_t) * sizeof(uint64_t), tensor.bytes);
    if (!merged.empty() && begin <= merged.back().second + kSmallGap) {
      merged.back().second = std::max(merged.back().second, end);
    } else {
      merged.emplace_back(begin, end);
    }
  }
  return merged;
}

void append_pieces(const TensorView& tensor, std::byte* data, uint64_t first_word,
                   std::vector<DummyPiece>& pieces) {
  constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
  const auto kind = absl::EndsWith(tensor.name, "norm.weight") ? DummyPiece::Kind::kOnes
                    : absl::EndsWith(tensor.name, ".bias")     ? DummyPiece::Kind::kZeros
                                                               : DummyPiece::Kind::kRandom;
  for (const auto& [begin, end] : needed_ranges(tensor)) {
    for (uint64_t at = begin; at < end; at += kPieceBytes) {
      pieces.push_back({.data = data + at,
                        .bytes = std::min(kPieceBytes, end - at),
                        .first_word = first_word + at / sizeof(uint64_t),
                        .kind = kind});
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightStore>> WeightStore::dummy(const ModelConfig& config,
                                                                const DummyWeights& options) {
  constexpr uint64_t kAlignment = 64;
  LCKV_CHECK(options.num_threads >= 1);
  const std::vector<TensorSpec> specs = expected_tensors(config);
  const auto bytes_of = [&options](const TensorSpec& spec) {
    return static_cast<uint64_t>(spec.num_elements()) * dtype_bytes(options.dtype);
  };
  uint64_t total = 0;
  for (const TensorSpec& spec : specs)
    total += (bytes_of(spec) + kAlignment - 1) & ~(kAlignment - 1);
  // Addresses for all of it, memory for what is touched.
  auto memory = MappedMemory::allocate(total, /*is_sparse=*/options.shard.size > 1);
  if (!memory.ok()) return memory.status();

  auto store = std::unique_ptr<WeightStore>(new WeightStore(options.shard));
  std::vector<DummyPiece> pieces;
  uint64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    std::byte* data = memory->writable() + offset;
    store->add({.name = spec.name,
                .dtype = options.dtype,
                .shape = spec.shape,
                .data = data,
                .bytes = bytes_of(spec),
                .slice = slice_tensor(spec, config, options.shard)});
    append_pieces(store->tensors_.back(), data, offset / sizeof(uint64_t), pieces);
    offset += (bytes_of(spec) + kAlignment - 1) & ~(kAlignment - 1);
  }
  fill_pieces(pieces, options);
  store->memory_.push_back(*std::move(memory));
  return store;
}

}  // namespace lckv
