lckv_test(worker_engine_test
  SOURCES engine_test.cc geometry_test.cc numerics_test.cc offloaded_layers_test.cc sampler_test.cc
  DEPS lckv_test_support
  LABELS worker)
