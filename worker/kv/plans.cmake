lckv_library(lckv_plans
  SOURCES layer_plan.cc pass_plan.cc
  DEPS absl::status absl::statusor absl::strings)
