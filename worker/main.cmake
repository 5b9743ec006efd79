# The wiring, apart from main itself so that measurements can use it without a network.
lckv_library(lckv_worker_startup
  SOURCES config.cc connect.cc fit_memory.cc follow.cc launch.cc serving_plan.cc simulate.cc startup.cc
    worker_server.cc
  DEPS
    lckv_group lckv_service lckv_engine lckv_scheduler lckv_model lckv_kernels_cpu lckv_rpc
    lckv_sim absl::memory
    absl::status absl::statusor absl::strings absl::str_format absl::time)
target_compile_definitions(lckv_worker_startup PUBLIC LCKV_VERSION="${PROJECT_VERSION}")
if(LCKV_CUDA)
  target_compile_definitions(lckv_worker_startup PRIVATE LCKV_CUDA)
  target_link_libraries(lckv_worker_startup PRIVATE lckv_kernels_cuda)
endif()
lckv_binary(lckv-worker SOURCES main.cc DEPS lckv_worker_startup)
