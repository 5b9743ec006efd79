lckv_test(worker_loading_test
  SOURCES
    broken_checkpoint_test.cc
    checkpoint_writer.cc
    layer_plan_test.cc
    loading_test.cc
    model_config_test.cc
    offload_plan_test.cc
    pass_plan_test.cc
    tensor_shard_test.cc
  DEPS lckv_weights absl::strings
  LABELS worker)
