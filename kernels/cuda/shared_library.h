// A library that is loaded by name when it is needed, and its functions.
#pragma once

#include <dlfcn.h>

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace lckv {

// The library stays loaded.
class SharedLibrary {
 public:
  // Errors: FailedPrecondition where it is not to be had.
  static absl::StatusOr<SharedLibrary> load(const std::string& name) {
    void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return SharedLibrary(name, handle);
    return absl::FailedPreconditionError(absl::StrCat(name, " cannot be loaded: ", dlerror()));
  }

  template <class Function>
  void find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle_, name));
    if (function == nullptr && missing_.empty()) missing_ = name;
  }

  // FailedPrecondition naming the first function that was not found.
  absl::Status complete() const {
    if (missing_.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(name_, " has no ", missing_));
  }

 private:
  SharedLibrary(std::string name, void* handle) : name_(std::move(name)), handle_(handle) {}

  std::string name_;
  void* handle_;
  std::string missing_;
};

}  // namespace lckv
