// Blocks of 16 rows on 16-row matrix tiles (Intel AMX): 16 rows cost what one costs. The algorithm
// is a template over the tiles themselves, so that it can be verified where no hardware has them.
//
// A Tiles type has eight tiles of 16 rows by 64 bytes: clear<t>(), load<t>(from, stride in bytes),
// store<t>(to, stride) and dot<sums, rows, weights>() with the meaning of TDPBF16PS.
#pragma once

#include "kernels/cpu/row_product.h"

namespace lckv {

inline constexpr int kTileRows = 16;

// Sums of 16 rows by 64 columns in tiles 0 to 3, rows in tile 4, weights in tiles 5 to 7.
template <class Tiles>
inline void multiply_tile_block(Tiles& tiles, const BlockProduct& block) {
  constexpr int64_t kSumsStride = kPanelColumns * 4;
  constexpr int64_t kWeightsStride = kPanelColumns * 4;  // one pair of k of all columns
  constexpr int64_t kTileK = 32;
  auto* const sums = reinterpret_cast<std::byte*>(block.sums);
  if (block.first) {
    tiles.template clear<0>();
    tiles.template clear<1>();
    tiles.template clear<2>();
    tiles.template clear<3>();
  } else {
    tiles.template load<0>(sums, kSumsStride);
    tiles.template load<1>(sums + 64, kSumsStride);
    tiles.template load<2>(sums + 128, kSumsStride);
    tiles.template load<3>(sums + 192, kSumsStride);
  }
  const std::byte* weights = block.weights;
  const std::byte* x = block.x;
  const std::byte* ahead = block.ahead;
  for (int64_t k = 0; k < block.k; k += kTileK) {
    for (int line = 0; line < block.lines_ahead * kTileRows; ++line, ahead += 64) {
      __builtin_prefetch(ahead);
    }
    tiles.template load<4>(x, block.x_stride * 2);
    tiles.template load<5>(weights, kWeightsStride);
    tiles.template dot<0, 4, 5>();
    tiles.template load<6>(weights + 64, kWeightsStride);
    tiles.template dot<1, 4, 6>();
    tiles.template load<7>(weights + 128, kWeightsStride);
    tiles.template dot<2, 4, 7>();
    tiles.template load<5>(weights + 192, kWeightsStride);
    tiles.template dot<3, 4, 5>();
    weights += kTileK * kPanelColumns * 2;
    x += kTileK * 2;
  }
  tiles.template store<0>(sums, kSumsStride);
  tiles.template store<1>(sums + 64, kSumsStride);
  tiles.template store<2>(sums + 128, kSumsStride);
  tiles.template store<3>(sums + 192, kSumsStride);
}

inline RowKernels tile_row_kernels(const char* name, const BlockKernel* by_rows) {
  return {.name = name,
          .dtype = DType::kBFloat16,
          .row_unit = kTileRows,
          .max_units = 1,
          .chunk_bytes = 32768,
          .by_rows = by_rows};
}

// Only where the process may use AMX, see amx_permission.h.
RowKernels amx_bfloat16_row_kernels();

}  // namespace lckv
