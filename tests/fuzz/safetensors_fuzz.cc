// A safetensors file. Where the length field lies, the input is also read with a true one, so that
// the header's own checks are reached.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/check.h"
#include "worker/model/safetensors.h"

namespace {

void parse(std::span<const std::byte> file) {
  const auto entries = lckv::parse_safetensors(file, "file");
  if (!entries.ok()) {
    LCKV_CHECK(entries.status().message().find('\n') == absl::string_view::npos);
    return;
  }
  uint64_t last = 8;
  for (const lckv::SafetensorsEntry& entry : *entries) {
    LCKV_CHECK(entry.begin >= last && entry.begin <= entry.end && entry.end <= file.size());
    last = entry.end;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parse(std::as_bytes(std::span(data, size)));
  if (size < 8) return 0;
  // The header ends at the last brace, as a writer would have it.
  size_t header = size - 8;
  while (header > 0 && data[8 + header - 1] != '}') --header;
  std::vector<uint8_t> repaired(data, data + size);
  for (size_t i = 0; i < 8; ++i) repaired[i] = static_cast<uint8_t>(uint64_t{header} >> (8 * i));
  parse(std::as_bytes(std::span(repaired)));
  return 0;
}
