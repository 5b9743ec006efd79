// Ops: the operations a model is made of, on one device and in one order (stream).
//
// Memory. All pointers are device pointers from `Ops::allocate` unless said otherwise. Activations
// are float32, row-major, one row per token. Weights, keys and values are in the compute dtype
// given when the backend was opened.
//
// Operands are rows of activations as the backend's products take them in: rounded to the compute
// dtype by whoever makes them, or by the product. A row of k values takes operand_row_bytes(k).
//
// Reproducible mode. A row of a result depends on that row's inputs and on static shapes only:
// never on the number of rows, their order, the thread count, the block size or the chunking.
//
// Owner: ModelRunner. Thread: the engine's only, or before it starts the one that loads: whichever
// called enter_thread() last. Shapes are the caller's promise and checked by assertion; no call
// fails.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/dtype.h"

namespace lckv {

// Device memory. Freed when dropped.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t bytes() const = 0;
  float* floats() { return reinterpret_cast<float*>(data()); }
};

// Host memory that the device copies to and from. What it holds is open at first. Freed when
// dropped.
class HostBuffer {
 public:
  virtual ~HostBuffer() = default;
  virtual std::byte* data() = 0;
};

// Device memory for results, and their way to the host. Freed when dropped.
class ResultBuffer {
 public:
  virtual ~ResultBuffer() = default;
  virtual std::byte* device() = 0;
  // The same bytes, once they are there.
  virtual const std::byte* host() const = 0;
  // Begins to copy the first so many bytes to the host, as soon as all operations called so far
  // have ended, and returns at once.
  virtual void send(size_t bytes) = 0;
  // Whether all that was sent is there, and until it is.
  virtual bool is_there() const = 0;
  virtual void wait() = 0;
};

// A matrix as the checkpoint has it, in host memory: [n, k] row-major, y = x * W^T.
struct WeightSource {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  int64_t k = 0;
};

// A matrix packed for its device, once, in the backend's compute dtype.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual size_t bytes() const = 0;
};

// A place on the device that weights packed in host memory take turns in. Freed when dropped.
class WeightSlot {
 public:
  virtual ~WeightSlot() = default;
};

// Rows that ids name: packed for the device, once, in the compute dtype, or read where the
// checkpoint has them.
class EmbeddingTable {
 public:
  virtual ~EmbeddingTable() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  // Of the device's memory, without what it shares with a weight.
  virtual size_t bytes() const = 0;
  // Whether the source is to stay where it is for as long as the table lives.
  virtual bool reads_source() const = 0;
};

// How rotary frequencies are derived (Hugging Face `rope_scaling`).
struct RopeOptions {
  enum class Scaling : uint8_t { kNone, kLinear, kLlama3 };
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;          // llama3
  double high_freq_factor = 4.0;         // llama3
  int64_t original_max_position = 8192;  // llama3
  int32_t head_dim = 0;
};

// Where the committed slots of one kind of unit lie. A block starts at base + id * block_bytes and
// holds K [kv_heads, slots, head_dim], then V [kv_heads, slots, head_dim], in `dtype`.
struct KvLayout {
  std::byte* base = nullptr;
  int64_t block_bytes = 0;
  int32_t slots_per_block = 0;  // a power of two
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  DType dtype = DType::kFloat32;
};

// Rows of keys and values that are not in blocks: K [rows, kv_heads * head_dim], V likewise.
struct KvRows {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
};

// Some consecutive query rows of one sequence, and what they may see.
// Positions of slots and of staged rows together ascend strictly.
struct AttentionSegment {
  int32_t row_begin = 0;  // rows [row_begin, row_end) of q and out
  int32_t row_end = 0;
  const int32_t* blocks = nullptr;          // host: block of slot i is blocks[i / slots_per_block]
  const int32_t* slot_positions = nullptr;  // host: [num_slots] position of each committed slot
  int32_t num_slots = 0;
  const int32_t* staged_rows = nullptr;       // host: [num_staged] rows of `AttentionArgs::staged`
  const int32_t* staged_positions = nullptr;  // host: [num_staged]
  int32_t num_staged = 0;
};

// Queries, keys and values of rows as products give them, and where the latter two go: into slots
// of blocks or, where there are none, into staged rows.
struct NewKv {
  float* q = nullptr;  // [rows, num_heads * head_dim]; null: none
  int32_t num_heads = 0;
  float* kv = nullptr;  // [rows, 2 * kv_heads * head_dim]: k, then v
  KvLayout layout;
  std::span<const int32_t> blocks;  // host: [rows], and the next two
  std::span<const int32_t> slots;
  std::span<const int32_t> staged_rows;
  KvRows staged;
};

// out[r] = sum_j softmax(q[r] . k[j] * scale) v[j] over what row r, at position t, may see:
//   j <= t, or j < t where `strict`; and, where window > 0, j > t - window or j < num_sinks.
// A row that may see nothing gives zeros. Online softmax (Milakov and Gimelshein, 2018) over fixed
// tiles of 64 positions from position 0 upward, so that a row's result does not depend on how its
// history is cut into blocks, staged rows or chunks.
//
// With keys and values of 16 bits a backend may round to their format, for tensor cores, q and the
// weights relative to the largest score so far, each once. A row's result changes by no more than
// its own q's rounding and 2^-8 of its weighted mean of |v|, in float16 2^-11 of it and, as small
// weights are subnormal, 2^-25 of the sum of |v|; log_sum_exp by q's rounding alone.
struct AttentionArgs {
  const float* q = nullptr;            // [rows, num_heads * head_dim]
  std::byte* out = nullptr;            // operand: [rows, num_heads * head_dim]
  const int32_t* positions = nullptr;  // host: [rows]
  int32_t num_heads = 0;
  float scale = 1.0F;
  bool strict = false;
  int32_t window = 0;  // 0: none
  int32_t num_sinks = 0;
  // Rows of the official code's decode, which has a defect (ARCHITECTURE.md, "Compatibility"): keys
  // count as one position newer than they are, and a zero key with a zero value stands at position
  // 0. Host: [rows], null for none.
  const uint8_t* official_decode = nullptr;
  KvLayout layout;
  KvRows staged;
  std::span<const AttentionSegment> segments;
  float* log_sum_exp = nullptr;  // [rows, num_heads], -inf where nothing is seen; null for none
};

// How far the values that a walk gave are from those it read, per row and over K and V together.
// Of ranks that have different heads, the sum.
struct KvDistance {
  float difference_squared = 0.0F;  // sum of (new - read)^2
  float norm_squared = 0.0F;        // sum of new^2
  float differs = 0.0F;             // 0 where they are bit for bit the same, else at least 1
};
static_assert(sizeof(KvDistance) == 3 * sizeof(float), "summed over ranks as floats");

// A token's id; where it is drawn by an earlier operation, the device memory that has it by then.
struct TokenId {
  int32_t id = 0;
  const int32_t* drawn = nullptr;  // null: `id` it is
};

// For who can read that memory.
constexpr int32_t id_of(const TokenId& token) {
  return token.drawn == nullptr ? token.id : *token.drawn;
}

// What one row's next token is drawn from; see worker/scheduler/sequence_spec.h for the meaning.
struct SampleArgs {
  const float* logits = nullptr;  // [vocabulary], after bias and penalties
  int32_t vocabulary = 0;
  float temperature = 1.0F;
  uint32_t top_k = 0;
  float top_p = 1.0F;
  float min_p = 0.0F;
  uint64_t seed = 0;
  uint32_t choice = 0;
  uint32_t position = 0;     // of the token to be drawn, from the first generated one
  int32_t* drawn = nullptr;  // device: takes the id
};

struct TopEntry {
  int32_t id = 0;
  float logprob = 0.0F;
};

// Which natural log-probabilities of a row are asked for, and where on the device they go: one
// token's, and those of the most likely ids, the lower ones among equals, in any order.
struct LogprobArgs {
  const float* logits = nullptr;  // [vocabulary]
  TokenId token;
  float* own = nullptr;
  int32_t num_top = 0;      // up to the vocabulary
  TopEntry* top = nullptr;  // [num_top]
};

// What becomes of a logit, of a value that comes with it.
enum class LogitChange : uint8_t {
  kAdd,         // logit + value
  kDiscourage,  // logit / value where it is positive, else logit * value (Keskar et al., 2019)
  kSet,         // value
};

constexpr float changed_logit(LogitChange change, float logit, float value) {
  switch (change) {
    case LogitChange::kAdd:
      return logit + value;
    case LogitChange::kDiscourage:
      return logit > 0.0F ? logit / value : logit * value;
    case LogitChange::kSet:
      return value;
  }
  return logit;
}

// Of a device that has its own, in bytes.
struct DeviceMemory {
  uint64_t free = 0;
  uint64_t total = 0;
};

// Batches of one key make the same calls in the same order, with the same addresses, sizes and
// numbers, those of host arrays included: only what lies in host arrays may differ, and in the
// arrays that these point to.
struct BatchKey {
  int32_t range = 0;  // as the caller tells its batches of equal rows apart
  int32_t rows = 0;
  auto operator<=>(const BatchKey&) const = default;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual DType dtype() const = 0;
  // From here on the calling thread uses the device, and no other.
  virtual void enter_thread() {}
  // Instruction set and kernels that results depend on, for the numerics fingerprint.
  virtual const char* numerics() const = 0;
  // Rows of a product that take little longer than one, because it waits for its weights. Advice
  // to who chooses a step's rows; never a bound.
  virtual int32_t free_rows() const = 0;
  // As it is now; nothing where the device's memory is the host's.
  virtual std::optional<DeviceMemory> memory() const { return std::nullopt; }
  // Until end_batch() no host array that a call reads, nor one that it points to, changes or is
  // freed, but those of copy(): what a backend made of one, it may use for the next call that names
  // the same. Batches do not nest.
  virtual void begin_batch() {}
  // The same. True where the backend has made the calls of an earlier batch of the key once more,
  // for what host arrays hold now: the caller makes none.
  virtual bool repeat_batch(const BatchKey&) {
    begin_batch();
    return false;
  }
  virtual void end_batch() {}
  // Batches of a key may be others from here on.
  virtual void forget_batches() {}
  // How many rows a batch of `rows` is to be given, some of no meaning, so that there are few keys.
  virtual int32_t padded_rows(int32_t rows) const { return rows; }
  // Whether batches of `rows` are ever repeated.
  virtual bool repeats_batches(int32_t) const { return false; }

  // Whether calls return before their work is done.
  virtual bool returns_early() const { return false; }

  virtual std::unique_ptr<DeviceBuffer> allocate(size_t bytes) = 0;
  // As they are, the next two are for devices whose memory is the host's.
  virtual std::unique_ptr<HostBuffer> allocate_host(size_t bytes);
  virtual std::unique_ptr<ResultBuffer> allocate_results(size_t bytes);
  // Several matrices of equal k become one, stacked over n in the order given.
  virtual std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) = 0;
  // `tied`: a weight of pack() whose first rows were packed from the same values and which outlives
  // the table; null where there is none.
  virtual std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                                     const PackedWeight* tied) = 0;
  // As pack(), but the matrix stays in page-locked host memory: the device reads it where fetch()
  // has put it, and not before. As it is, this and the next two are for devices whose memory is the
  // host's: nothing moves.
  virtual std::unique_ptr<PackedWeight> pack_on_host(std::span<const WeightSource> sources) {
    return pack(sources);
  }
  // Holds weights of so many bytes() together. To be dropped before any weight that was fetched
  // into it.
  virtual std::unique_ptr<WeightSlot> allocate_weight_slot(size_t) {
    return std::make_unique<WeightSlot>();
  }
  // Begins to copy weights of pack_on_host() into the slot, as soon as all operations called so far
  // have ended and beside those called from here on, and returns at once. Products called from here
  // on wait for the copy, and may take in no weight that the slot held before.
  virtual void fetch(std::span<PackedWeight* const>, WeightSlot&) {}
  // A vector (norm weight, bias) as float32 on the device.
  virtual std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) = 0;

  // out[r] = table[id of tokens[r] - first], rounded to the compute dtype; zeros where the table
  // has no such row. tokens: host.
  virtual void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
                     float* out) = 0;
  virtual int64_t operand_row_bytes(int64_t k) const {
    return k * static_cast<int64_t>(sizeof(float));
  }
  // out = x [rows, k]; here and below `out` is an operand.
  virtual void to_operand(const float* x, int64_t rows, int64_t k, std::byte* out) {
    copy(reinterpret_cast<const std::byte*>(x), out, rows * k * sizeof(float));
  }
  // out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight
  virtual void rms_norm(const float* x, const float* weight, float eps, int64_t rows,
                        int64_t hidden, std::byte* out) = 0;
  // y[rows, n] (+)= x[rows, k] * W^T (+ bias[n]), of an operand x.
  virtual void matmul(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
                      const float* bias, bool accumulate) = 0;
  // Tables for `rope`: cos and sin, [max_positions, head_dim / 2] each.
  virtual std::unique_ptr<DeviceBuffer> rope_table(const RopeOptions& options,
                                                   int64_t max_positions) = 0;
  // Rotates halves in place: x [rows, row_stride] holds `heads` heads of head_dim at its start.
  virtual void rope(float* x, int64_t row_stride, std::span<const int32_t> positions, int32_t heads,
                    int32_t head_dim, DeviceBuffer& table) = 0;
  // out[r, i] = silu(gate_up[r, i]) * gate_up[r, inner + i]
  virtual void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* out) = 0;
  // out[i] = x[ids[i]] and out[ids[i]] = x[i], over rows of `hidden` floats. ids: host.
  virtual void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                           float* out) = 0;
  virtual void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                            float* out) = 0;

  // Rows [ids.size(), k_stride]: the first kv_heads * head_dim floats of k and v, rounded to
  // layout.dtype, into rows ids[i] of `staged`; nowhere if that is negative. ids: host.
  virtual void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                        std::span<const int32_t> ids, const KvRows& staged) = 0;
  // Fills rows ids[i] of `staged` with zeros.
  virtual void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
                       const KvRows& staged) = 0;
  // from rows ids[i] to rows ids[i] of another staged array.
  virtual void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
                       const KvRows& to) = 0;
  // out[i]: distance of staged rows ids[i]. ids: host.
  virtual void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                          const KvRows& read, KvDistance* out) = 0;
  // Into slot slots[i] of block blocks[i]: from float rows, nowhere if the block is negative, or
  // from staged rows ids[i]. All host.
  virtual void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                         std::span<const int32_t> blocks, std::span<const int32_t> slots) = 0;
  virtual void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                         std::span<const int32_t> blocks, std::span<const int32_t> slots) = 0;

  // Rotates q, and k on its way to where keys and values go: rope(), then append_kv() or
  // stage_kv(). What kv holds then is open.
  virtual void rope_kv(const NewKv& rows, std::span<const int32_t> positions, DeviceBuffer& table);

  virtual void attention(const AttentionArgs& args) = 0;

  // Copies whole blocks of `bytes` between device and host memory; the pointers may be either.
  virtual void copy(const std::byte* from, std::byte* to, size_t bytes) = 0;
  // The same between device memory and that of allocate_host(), as one operation among the others:
  // the host does not wait for it.
  virtual void copy_block(const std::byte* from, std::byte* to, size_t bytes) {
    copy(from, to, bytes);
  }
  // to[r, i] = from[r, i] for i < width; rows of from_stride and to_stride floats.
  virtual void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width,
                            float* to, int64_t to_stride) = 0;

  // logits[ids[i]] = changed_logit(change, logits[ids[i]], values[i]). ids and values: host; of ids
  // that are equal, values are too, and the change is kSet.
  virtual void change_logits(float* logits, LogitChange change, std::span<const int32_t> ids,
                             std::span<const float> values) = 0;
  // The rows are host, and of one vocabulary; as of sample().
  virtual void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) = 0;
  // Temperature 0: the largest logit, the lowest id among equals. Else: temperature, top-k, min-p,
  // top-p, in this order, then one draw by Philox 4x32-10 (Salmon et al., SC 2011) keyed by seed,
  // choice and position.
  virtual void sample(std::span<const SampleArgs> rows) = 0;
};

inline void Ops::rope_kv(const NewKv& rows, std::span<const int32_t> positions,
                         DeviceBuffer& table) {
  const KvLayout& layout = rows.layout;
  const int64_t width = int64_t{layout.kv_heads} * layout.head_dim;
  if (rows.q != nullptr) {
    rope(rows.q, int64_t{rows.num_heads} * layout.head_dim, positions, rows.num_heads,
         layout.head_dim, table);
  }
  rope(rows.kv, 2 * width, positions, layout.kv_heads, layout.head_dim, table);
  if (rows.blocks.empty()) {
    stage_kv(rows.kv, rows.kv + width, 2 * width, layout, rows.staged_rows, rows.staged);
  } else {
    append_kv(rows.kv, rows.kv + width, 2 * width, layout, rows.blocks, rows.slots);
  }
}

// Results in host memory, where operations that have been called have ended.
class HostResults final : public ResultBuffer {
 public:
  explicit HostResults(std::unique_ptr<DeviceBuffer> memory) : memory_(std::move(memory)) {}
  std::byte* device() override { return memory_->data(); }
  const std::byte* host() const override { return memory_->data(); }
  void send(size_t) override {}
  bool is_there() const override { return true; }
  void wait() override {}

 private:
  const std::unique_ptr<DeviceBuffer> memory_;
};

class PlainHostBuffer final : public HostBuffer {
 public:
  explicit PlainHostBuffer(size_t bytes) : memory_(new std::byte[bytes]) {}
  std::byte* data() override { return memory_.get(); }

 private:
  const std::unique_ptr<std::byte[]> memory_;  // not touched before it is used
};

inline std::unique_ptr<HostBuffer> Ops::allocate_host(size_t bytes) {
  return std::make_unique<PlainHostBuffer>(bytes);
}

inline std::unique_ptr<ResultBuffer> Ops::allocate_results(size_t bytes) {
  return std::make_unique<HostResults>(allocate(bytes));
}

// A batch of `ops`, for as long as this lives.
class OpsBatch {
 public:
  OpsBatch(Ops& ops, const BatchKey& key) : ops_(ops), is_repeated_(ops.repeat_batch(key)) {}
  ~OpsBatch() { ops_.end_batch(); }
  OpsBatch(const OpsBatch&) = delete;
  OpsBatch& operator=(const OpsBatch&) = delete;
  bool is_repeated() const { return is_repeated_; }

 private:
  Ops& ops_;
  const bool is_repeated_;
};

}  // namespace lckv
