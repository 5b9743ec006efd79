lckv_test(worker_service_test
  SOURCES
    service_test.cc service_limits_test.cc submit_check_test.cc step_frames_test.cc
    worker_metrics_test.cc moving_test.cc seat_rate_test.cc
  DEPS lckv_service
  LABELS worker)
lckv_test(worker_serving_plan_test
  SOURCES serving_plan_test.cc
  DEPS lckv_worker_startup
  LABELS worker)
