// Which batches are recorded, and how much room what they send is given, so that few recordings
// serve many batches. Constexpr: tested without a device.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace lckv {

// With more rows the device works for longer than the host takes to ask for it.
inline constexpr int32_t kRecordedRowsMax = 64;

// How many rows a batch of `rows` is given. Steps of 8 and 16 are those in which products work on
// rows: padding to them costs little.
constexpr int32_t recorded_rows(int32_t rows) {
  if (rows <= 0 || rows > kRecordedRowsMax) return rows;
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  const int32_t step = rows <= 32 ? 8 : 16;
  return (rows + step - 1) / step * step;
}

// Of an array that has `count` entries now and may have others when it is sent again. None where
// there are none: many batches have no split histories, and nothing is started for them.
constexpr size_t room_for(size_t count) {
  constexpr size_t kLeast = 16;
  return count == 0 ? 0 : std::bit_ceil(std::max(count, kLeast));
}

}  // namespace lckv
