// kernels/cuda/tensor_core.cuh on the host, written from the PTX ISA's tables: "cp.async",
// "Warp-level matrix load instruction: ldmatrix" and "Matrix Fragments for mma.m16n8k16 with
// floating point type".
#include "kernels/cuda/tensor_core.cuh"

#include "kernels/check.h"

namespace lckv {
namespace {

using emulated_cuda::Gathered;

bool is_aligned(uintptr_t address) { return address % 16 == 0; }

// Rows of a matrix are read at once: they must share no bank.
void check_banks(const Gathered<SharedAddress>& rows, int matrix) {
  unsigned banks = 0;
  for (int row = 0; row < 8; ++row) {
    const SharedAddress address = rows[matrix * 8 + row];
    LCKV_CHECK(is_aligned(address));
    banks |= 1U << address / 16 % 8;
  }
  LCKV_CHECK(banks == 0xFF);
}

uint4 load_matrices(SharedAddress row_of_lane, bool is_transposed) {
  const Gathered<SharedAddress> rows(row_of_lane);
  const int row = emulated_cuda::lane() / 4;
  const int column = emulated_cuda::lane() % 4 * 2;
  uint32_t registers[4];
  for (int matrix = 0; matrix < 4; ++matrix) {
    check_banks(rows, matrix);
    const auto element = [&](int i, int j) -> uint32_t {
      const SharedAddress address = rows[matrix * 8 + (is_transposed ? j : i)];
      return reinterpret_cast<const uint16_t*>(address)[is_transposed ? i : j];
    };
    registers[matrix] = element(row, column) | element(row, column + 1) << 16;
  }
  return {registers[0], registers[1], registers[2], registers[3]};
}

struct Operands {
  uint32_t a[4];
  uint32_t b[2];
};

template <class Value>
float half_of(uint32_t pair, int i) {
  return widened(Value{static_cast<uint16_t>(i == 0 ? pair : pair >> 16)});
}

// Which lane and register hold an element, the inverse of the tables: of elements a0 to a7 the row
// is the group where i is 0, 1, 4 or 5, else the group + 8; the column is twice the lane's number
// in its group, + i % 2, and + 8 from a4 on. Of b0 to b3 it is the row that is found so, + 8 from
// b2 on, and the column is the group.
template <class Value>
float element_of_a(const Gathered<Operands>& operands, int row, int column) {
  const int lane = row % 8 * 4 + column % 8 / 2;
  const int i = column / 8 * 4 + row / 8 * 2 + column % 2;
  return half_of<Value>(operands[lane].a[i / 2], i % 2);
}
template <class Value>
float element_of_b(const Gathered<Operands>& operands, int row, int column) {
  const int lane = column * 4 + row % 8 / 2;
  const int i = row / 8 * 2 + row % 2;
  return half_of<Value>(operands[lane].b[i / 2], i % 2);
}

}  // namespace

std::byte* dynamic_shared() { return emulated_cuda::launch_shared(); }

SharedAddress shared_address(const void* pointer) {
  return reinterpret_cast<SharedAddress>(pointer);
}

void cp_async16(SharedAddress to, const void* from) {
  LCKV_CHECK(is_aligned(to) && is_aligned(reinterpret_cast<uintptr_t>(from)));
  auto* const target = reinterpret_cast<void*>(to);
  if (emulated_cuda::copies_at_once()) {
    std::memcpy(target, from, 16);
  } else {
    emulated_cuda::pending_copies().push_back({target, from, 16});
  }
}

void cp_async_wait() {
  for (const auto& copy : emulated_cuda::pending_copies()) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  emulated_cuda::pending_copies().clear();
}

template <class Value>
uint32_t pack(float low, float high) {
  return narrowed<Value>(low).bits | static_cast<uint32_t>(narrowed<Value>(high).bits) << 16;
}
template uint32_t pack<BFloat16>(float low, float high);
template uint32_t pack<Float16>(float low, float high);

uint4 ldmatrix(SharedAddress row) { return load_matrices(row, false); }
uint4 ldmatrix_transposed(SharedAddress row) { return load_matrices(row, true); }

template <class Value>
void mma(float (&sums)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  const Gathered<Operands> operands({{a.x, a.y, a.z, a.w}, {b0, b1}});
  const int group = emulated_cuda::lane() / 4;
  const int in_group = emulated_cuda::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8;
    const int column = in_group * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      sums[i] += element_of_a<Value>(operands, row, k) * element_of_b<Value>(operands, k, column);
    }
  }
}
template void mma<BFloat16>(float (&sums)[4], const uint4& a, uint32_t b0, uint32_t b1);
template void mma<Float16>(float (&sums)[4], const uint4& a, uint32_t b0, uint32_t b1);

}  // namespace lckv
