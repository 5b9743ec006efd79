lckv_library(lckv_plans
  SOURCES kv/layer_plan.cc kv/pass_plan.cc
  DEPS absl::status absl::statusor absl::strings)
