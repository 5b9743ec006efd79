#!/usr/bin/env bash
# Measures this machine and what the engine makes of it: builds, then prints one line a measurement with the
# limit it is a part of and its goal. `--smoke [FOLDER OF BUILT PROGRAMS]`: small models, seconds, no table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
smoke=""
programs="build/release/bin"
if [[ "${1:-}" == "--smoke" ]]; then
  smoke="--smoke"
  programs="${2:-$programs}"
fi
if [[ -z "$smoke" || "$programs" == "build/release/bin" ]]; then
  cmake --preset release >/dev/null
  cmake --build --preset release --target lckv lckv-router lckv-worker lckv_serving_bench lckv_start_bench \
    lckv_collectives_bench lckv_device_bench lckv_protocol_bench lckv_fleet_bench lckv_overload_bench lckv_routing_bench
fi
# As lckv-worker sets it for itself.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
"$programs/lckv_start_bench" "$programs/lckv-worker" $smoke
"$programs/lckv_serving_bench" $smoke
if [[ -n "$smoke" ]]; then # in full: by tests/gpu.sh
  "$programs/lckv_device_bench" --smoke
  "$programs/lckv_protocol_bench" "$programs/lckv" --smoke
fi
"$programs/lckv_collectives_bench" $smoke
[[ -n "$smoke" ]] || "$programs/lckv_routing_bench" # small, it is a test of its own
"$programs/lckv_fleet_bench" "$programs/lckv-router" $smoke
"$programs/lckv_overload_bench" "$programs/lckv-router" $smoke
LCKV_BIN="$(realpath "$programs")" /usr/bin/python3 tests/bench/idle_readers.py $smoke
