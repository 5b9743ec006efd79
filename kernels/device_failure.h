// How a process ends whose device, or a library that works on it, fails while a model is served:
// what is on the device is lost, and so is whoever waits for this rank.
#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace lckv {

// Ends the process with exit code 1 and the one line "CUDA error in attention: ..." of `library`
// and `operation`: on stderr, or where on_device_failure() has it. Any thread.
[[noreturn]] void end_on_device_failure(absl::string_view library, absl::string_view operation,
                                        absl::string_view why);

// From now on `report` gets that line, on the thread that found out; it may end the process itself.
// Null: stderr does. Any thread; the process has one.
void on_device_failure(std::function<void(const std::string& line)> report);

}  // namespace lckv
