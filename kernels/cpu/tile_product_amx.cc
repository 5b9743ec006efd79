// The tiles of the hardware. In assembly, since the compiler's intrinsics are macros that paste the
// tile's number and take no template argument.
#include "kernels/cpu/tile_product.h"

namespace lckv {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

struct HardwareTiles {
  template <int kTile>
  void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load(const std::byte* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(std::byte* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kRows, int kWeights>
  void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
  }
};

// The tiles are configured for each block: it costs tens of cycles of thousands, and leaves no
// state of this thread behind that other code would have to know of.
void multiply_block(const BlockProduct& block) {
  const TileConfig config;
  asm volatile("ldtilecfg %0" ::"m"(config));
  HardwareTiles tiles;
  multiply_tile_block(tiles, block);
  asm volatile("tilerelease");
}

constexpr BlockKernel kByRows[] = {multiply_block};

}  // namespace

RowKernels amx_bfloat16_row_kernels() { return tile_row_kernels("amx_bf16", kByRows); }

}  // namespace lckv
