lckv_test(scheduler_test
  SOURCES kv_accounting_test.cc prefix_index_test.cc scheduler_harness.cc scheduler_memory_test.cc
    scheduler_order_test.cc scheduler_prefix_test.cc scheduler_test.cc
  DEPS lckv_scheduler lckv_kv lckv_plans
  LABELS worker TIMEOUT 60)
