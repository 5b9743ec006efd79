#!/usr/bin/env bash
# One router and two worker replicas of the demo model on this machine.
#
#   demo.sh         runs until Ctrl-C
#   demo.sh --once  ends after the first completion
#
# Ports, each settable in the environment:
#   ROUTER_PORT=50051 ROUTER_METRICS_PORT=9090 ROUTER_HEALTH_PORT=50052
#   WORKER_PORT=50061 WORKER_METRICS_PORT=9091 WORKER_HEALTH_PORT=50071   (the second worker: one higher)
#   TENSOR_PARALLEL_SIZE=1    ranks (processes) that share each replica's model
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${LCKV_BIN:-$root/build/release/bin}
model=$root/deploy/models/demo
ready_seconds=60
stop_seconds=20

say() { echo "demo: $*" >&2; }
fail() { say "$*"; exit 1; }

once=
case ${1-} in
  "") ;;
  --once) once=yes ;;
  *) fail "unknown argument \"$1\"; valid: --once" ;;
esac

declare -A port=(
  [ROUTER_PORT]=${ROUTER_PORT:-50051}
  [ROUTER_METRICS_PORT]=${ROUTER_METRICS_PORT:-9090}
  [ROUTER_HEALTH_PORT]=${ROUTER_HEALTH_PORT:-50052}
  [WORKER_PORT]=${WORKER_PORT:-50061}
  [WORKER_METRICS_PORT]=${WORKER_METRICS_PORT:-9091}
  [WORKER_HEALTH_PORT]=${WORKER_HEALTH_PORT:-50071})

require_free() {
  # Opening a connection succeeds only where somebody listens.
  if (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
    fail "port $2 is taken; choose another: $1=... $0"
  fi
}

build() {
  if [[ -n ${LCKV_BIN-} ]]; then return; fi
  "$root/deploy/install-deps.sh" --build
  [[ -f $root/build/release/build.ninja ]] ||
    (cd "$root" && cmake --preset release >&2) || fail "cmake could not configure"
  say "building (the first time takes minutes)"
  cmake --build "$root/build/release" --target lckv-router lckv-worker lckv >&2
}

pids=()
logs=
stop_all() {
  local status=$?
  trap - EXIT INT TERM
  if [[ ${#pids[@]} -gt 0 ]]; then
    say "stopping"
    kill -TERM "${pids[@]}" 2>/dev/null || true
    local deadline=$((SECONDS + stop_seconds))
    for pid in "${pids[@]}"; do
      while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS >= deadline)); then
          say "process $pid did not end in $stop_seconds s; killing it"
          kill -KILL "$pid" 2>/dev/null || true
          break
        fi
        sleep 0.1
      done
      wait "$pid" 2>/dev/null || true
    done
  fi
  [[ -z $logs ]] || rm -rf "$logs"
  exit "$status"
}

# start NAME PROGRAM ARGUMENTS...: in a process group of its own, so that Ctrl-C reaches this script alone.
start() {
  local name=$1
  shift
  setsid "$@" >"$logs/$name.log" 2>&1 </dev/null &
  pids+=($!)
  names+=("$name")
}
names=()

check_alive() {
  for i in "${!pids[@]}"; do
    if ! kill -0 "${pids[$i]}" 2>/dev/null; then
      tail -n 5 "$logs/${names[$i]}.log" >&2
      fail "${names[$i]} ended"
    fi
  done
}

wait_until_ready() {
  local deadline=$((SECONDS + ready_seconds)) ready
  while true; do
    check_alive
    ready=$("$bin/lckv" replicas --router "$router" --timeout 2s 2>/dev/null | grep -c ' ready ' || true)
    [[ $ready -ge 2 ]] && return
    ((SECONDS < deadline)) || fail "not ready after $ready_seconds s; logs: $(cat "$logs"/*.log)"
    sleep 0.2
  done
}

second() { echo $((${port[$1]} + 1)); }

start_worker() {
  start "$1" "$bin/lckv-worker" --model "$model" --served-model-name demo --host 127.0.0.1 \
    --port "$2" --metrics-port "$3" --health-port "$4" --kv-cache-memory 256MiB --swap-space 64MiB \
    --threads "$threads" --tensor-parallel-size "$ranks"
}

print_places() {
  cat >&2 <<END

demo: two replicas of the demo model are running
  gRPC     $router
  health   127.0.0.1:${port[ROUTER_HEALTH_PORT]}  (workers: ${port[WORKER_HEALTH_PORT]}, $(second WORKER_HEALTH_PORT))
  metrics  http://127.0.0.1:${port[ROUTER_METRICS_PORT]}/metrics  (workers: ${port[WORKER_METRICS_PORT]}, $(second WORKER_METRICS_PORT))

  $bin/lckv generate --router $router "The people of the village"
  $bin/lckv replicas --router $router
  $bin/lckv score --router $router $model/eval.txt --context 256
  grpcurl -plaintext -d '{"text": "Once", "stopping": {"max_new_tokens": 8}}' $router lckv.v1.Inference/Generate
  curl -s http://127.0.0.1:${port[ROUTER_METRICS_PORT]}/metrics

END
}

trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for name in "${!port[@]}"; do require_free "$name" "${port[$name]}"; done
for name in WORKER_PORT WORKER_METRICS_PORT WORKER_HEALTH_PORT; do require_free "$name" "$(second $name)"; done
build
router=127.0.0.1:${port[ROUTER_PORT]}
ranks=${TENSOR_PARALLEL_SIZE:-1}
threads=$((($(nproc) + 2 * ranks - 1) / (2 * ranks)))
logs=$(mktemp -d)
start_worker worker-1 "${port[WORKER_PORT]}" "${port[WORKER_METRICS_PORT]}" "${port[WORKER_HEALTH_PORT]}"
start_worker worker-2 "$(second WORKER_PORT)" "$(second WORKER_METRICS_PORT)" "$(second WORKER_HEALTH_PORT)"
start router "$bin/lckv-router" --host 127.0.0.1 --port "${port[ROUTER_PORT]}" \
  --metrics-port "${port[ROUTER_METRICS_PORT]}" --health-port "${port[ROUTER_HEALTH_PORT]}" \
  --workers "127.0.0.1:${port[WORKER_PORT]},127.0.0.1:$(second WORKER_PORT)"
wait_until_ready

prompt="The history of the city"
printf '\n%s' "$prompt"
timeout 60 "$bin/lckv" generate --router "$router" --max-new-tokens 64 --seed 7 "$prompt"
print_places
[[ -z $once ]] || exit 0
say "running until Ctrl-C"
while true; do
  check_alive
  sleep 1
done
