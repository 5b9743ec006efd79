lckv_library(lckv_model
  SOURCES llama.cc llama_weights.cc
  DEPS lckv_weights lckv_plans absl::status absl::statusor absl::strings)
