#!/usr/bin/env bash
# Builds everything and runs every test; the last line reads "N passed, M failed".
#
#   run.sh [--preset release|asan|tsan] [--only PART]
#
# Parts: unit (GoogleTest), tidy (layering, limits, format), e2e (real processes, from Python), and, in release only,
# helm (the chart), observability (dashboards and rules under a real Prometheus), fuzz, cuda (the CUDA backend compiled).
# Checks that take longer than five minutes are targets of their own; CONTRIBUTING.md names them.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
preset=release
only=
while [[ $# -gt 0 ]]; do
  case $1 in
    --preset) preset=${2-}; shift 2 || shift ;;
    --only) only=${2-}; shift 2 || shift ;;
    *) echo "run: unknown argument \"$1\"; valid: --preset, --only" >&2; exit 2 ;;
  esac
done
case $preset in release | asan | tsan) ;; *) echo "run: --preset: valid: release, asan, tsan" >&2; exit 2 ;; esac
case $only in
  "" | unit | tidy | e2e | helm | fuzz | observability | cuda) ;;
  *) echo "run: --only: valid: unit, tidy, e2e, helm, fuzz, observability, cuda" >&2; exit 2 ;;
esac

python=/usr/bin/python3  # the one that Debian's grpcio and pytest belong to
build=$root/build/$preset
reports=$build/reports
rm -rf "$reports"
mkdir -p "$reports/gtest"
exec </dev/null

say() { printf '\n== %s\n' "$*"; }
wanted() { [[ -z $only || $only == "$1" ]]; }
finish() {
  "$python" "$root/tests/support/totals.py" "$reports"
  exit $?
}
# step NAME COMMAND...: one check that passes or fails as a whole.
step() {
  local name=$1 begin=$SECONDS status=0
  shift
  say "$name"
  "$@" || status=$?
  printf '%s\t%s\t%s\n' "$name" $((SECONDS - begin)) "$status" >>"$reports/steps.tsv"
  return "$status"
}
# A step on which everything after it depends.
require() { step "$@" || finish; }

require "install" "$root/deploy/install-deps.sh"
export PATH=$root/build/tools/bin:$PATH
if [[ $only != tidy && $only != cuda ]]; then
  [[ -f $build/build.ninja ]] || require "configure" cmake --preset "$preset"
  require "build" cmake --build "$build"
fi

supp=$root/tests/support
export ASAN_OPTIONS=detect_stack_use_after_return=0:suppressions=$supp/asan.supp
export LSAN_OPTIONS=suppressions=$supp/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
# With less history a finding in a packaged library loses the stack by which it is known for one.
export TSAN_OPTIONS=suppressions=$supp/tsan.supp:second_deadlock_stack=1:history_size=5
export LCKV_BIN=$build/bin LCKV_PRESET=$preset PYTHONDONTWRITEBYTECODE=1
# The OpenMP runtime is not built for ThreadSanitizer, which takes its barriers for races.
[[ $preset != tsan ]] || export OMP_THREAD_LIMIT=1

if wanted unit; then
  say "unit"
  GTEST_OUTPUT=xml:$reports/gtest/ ctest --test-dir "$build" -j2 --output-on-failure \
    --output-junit "$reports/ctest.xml" || [[ -f $reports/ctest.xml ]] || step "ctest" false
fi
if wanted tidy; then
  step "tests/tidy/check.py" "$python" tests/tidy/check.py
  step "tests/tidy/format.sh" tests/tidy/format.sh --check
  say "tidy's own test"
  "$python" -m pytest -q -p no:cacheprovider tests/tidy --junitxml "$reports/tidy.xml"
fi
if wanted e2e; then
  say "e2e"
  "$python" -m pytest -q -p no:cacheprovider tests/e2e tests/images/test_files.py --junitxml "$reports/e2e.xml"
  [[ -f $reports/e2e.xml ]] || step "pytest tests/e2e" false
fi
if wanted helm && [[ $preset == release ]]; then
  say "helm"
  "$python" -m pytest -q -p no:cacheprovider tests/helm --junitxml "$reports/helm.xml"
  [[ -f $reports/helm.xml ]] || step "pytest tests/helm" false
fi
if wanted observability && [[ $preset == release ]]; then
  say "observability"
  "$python" -m pytest -q -p no:cacheprovider tests/observability --junitxml "$reports/observability.xml"
  [[ -f $reports/observability.xml ]] || step "pytest tests/observability" false
fi
if wanted cuda && [[ $preset == release ]]; then
  step "tests/kernels/run_cuda.sh" tests/kernels/run_cuda.sh
fi
if wanted fuzz && [[ $preset == release ]]; then
  step "tests/fuzz/run.sh" tests/fuzz/run.sh
fi
finish
