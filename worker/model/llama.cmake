lckv_library(lckv_model
  SOURCES llama.cc
  DEPS lckv_weights lckv_plans absl::status absl::statusor absl::strings)
