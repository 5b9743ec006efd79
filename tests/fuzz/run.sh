#!/usr/bin/env bash
# Fuzzes every parser that outsiders reach, two at a time, each FUZZ_SECONDS (60) long under the address and
# undefined-behaviour sanitizers, and asks that the inputs kept reach 85 % of the parser's lines.
#
#   run.sh [NAME...]      all targets, or those named
#
# One line a target; exits 1 where one crashed, leaked, hung or reached too little. Clang's own build of the
# parsers' sources lies in build/fuzz, with the inputs found and the logs.
set -uo pipefail

cd "$(dirname "$0")/../.."
source tests/fuzz/targets.sh
out=build/fuzz
seconds=${FUZZ_SECONDS:-60}
least_percent=85

say() { printf 'fuzz %-18s %s\n' "$1" "$2"; }

# build NAME SOURCES LIBRARIES
build() {
  local flags
  flags=$(pkg-config --cflags --libs $3) || return 1
  clang++-14 -std=c++20 -O1 -g1 -I. -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=undefined -fprofile-instr-generate -fcoverage-mapping \
    "tests/fuzz/$1_fuzz.cc" $2 $flags -o "$out/$1/fuzz"
}

# covered NAME MEASURED: percent of lines, one decimal.
covered() {
  local work=$out/$1
  LLVM_PROFILE_FILE=$work/raw.profile "$work/fuzz" -runs=0 "$work/inputs" \
    "tests/fuzz/corpus/$1" >"$work/coverage.log" 2>&1 || return 1
  llvm-profdata-14 merge -sparse "$work/raw.profile" -o "$work/profile" || return 1
  llvm-cov-14 export -summary-only -instr-profile "$work/profile" "$work/fuzz" $2 |
    /usr/bin/python3 -c 'import json, sys
lines = json.load(sys.stdin)["data"][0]["totals"]["lines"]
print("%.1f" % (100 * lines["covered"] / max(lines["count"], 1)))'
}

run_target() {
  local name sources libraries measured
  IFS='|' read -r -d '' name sources libraries measured < <(printf '%s\0' "$1")
  local work=$out/$name percent runs
  rm -rf "$work"
  mkdir -p "$work/inputs"
  if ! build "$name" "$sources" "$libraries" >"$work/build.log" 2>&1; then
    say "$name" "does not build: $(grep -m1 -E 'error|Package' "$work/build.log") ($work/build.log)"
    return 1
  fi
  if ! LLVM_PROFILE_FILE=/dev/null "$work/fuzz" -max_total_time="$seconds" -timeout=10 \
    -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$work/found-" \
    "$work/inputs" "tests/fuzz/corpus/$name" >"$work/fuzz.log" 2>&1; then
    say "$name" "failed: $(grep -m1 -E 'ERROR|runtime error|invariant' "$work/fuzz.log") ($work/fuzz.log)"
    return 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/fuzz.log")
  percent=$(covered "$name" "$measured") || { say "$name" "no coverage ($work/coverage.log)"; return 1; }
  if ! awk -v have="$percent" -v need="$least_percent" 'BEGIN { exit !(have >= need) }'; then
    say "$name" "reaches $percent % of its lines, at least $least_percent % are asked"
    return 1
  fi
  say "$name" "$runs inputs in $seconds s, $percent % of lines"
}

if [[ ${1-} == --target ]]; then
  run_target "$2"
  exit
fi
chosen=()
for target in "${TARGETS[@]}"; do
  [[ $# -eq 0 || " $* " == *" ${target%%|*} "* ]] && chosen+=("$target")
done
if [[ ${#chosen[@]} -eq 0 ]]; then
  echo "fuzz: no such target; valid: $(printf '%s ' "${TARGETS[@]%%|*}")" >&2
  exit 2
fi
printf '%s\0' "${chosen[@]}" | xargs -0 -n 1 -P 2 "$PWD/tests/fuzz/run.sh" --target || exit 1
