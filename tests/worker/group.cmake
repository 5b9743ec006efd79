lckv_test(worker_group_test
  SOURCES group_test.cc plan_frames_test.cc rank_watch_test.cc timed_collectives_test.cc
  DEPS lckv_group lckv_test_support
  LABELS worker TIMEOUT 120)
lckv_test(worker_launch_test
  SOURCES launch_test.cc
  DEPS lckv_worker_startup
  LABELS worker TIMEOUT 60)
