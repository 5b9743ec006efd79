lckv_library(lckv_model
  SOURCES llama.cc llama_weights.cc offloaded_layers.cc
  DEPS lckv_weights lckv_plans absl::status absl::statusor absl::strings)
