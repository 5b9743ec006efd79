lckv_test(worker_sim_test
  SOURCES device_profile_test.cc simulated_runner_test.cc step_cost_test.cc
  DEPS lckv_sim lckv_test_support lckv_worker_startup
  LABELS worker)
