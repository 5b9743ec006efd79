#!/usr/bin/env bash
# Everything that needs a GPU, as one archive and one command: for a machine with GPU, driver, CUDA toolkit and python3,
# but without a network, in 9 minutes at most.
#
#   gpu.sh pack [FILE]      builds, and packs programs, their libraries and what they read; default: build/lckv-gpu.tar.xz
#   gpu.sh run [--only PART]... [--out FOLDER] [--allow-no-device]
#                           from the unpacked archive or the source tree, into build/gpu; default: what 9 minutes are
#                           enough for
#
# Parts: kernels, golden, equalities, serving, bench, sanitizer; where they are named, large (decode of 7B's shape, the
# published protocol) and offloaded (the same of 30B, from host memory), up to 9 minutes each, on 80 GB at least. Each
# run has a deadline, and none keeps the others from running. What came of them is a table and a .json file; where
# something failed, or without a device, the exit code is 1.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
max_bytes=60000000
programs=(cuda_test golden_cuda_test equality_cuda_test lckv_device_bench lckv_protocol_bench lckv_serving_bench
  lckv lckv-router lckv-worker)
inputs=(tests/gpu.sh tests/support/gpu_report.py tests/support/gpu_serving.py tests/golden/cases tests/bench/models
  deploy/models/demo)
parts=(kernels golden equalities serving bench sanitizer)
named_parts=(large offloaded)

say() { echo "gpu: $*" >&2; }
wrong() { echo "gpu: $1; valid: $2" >&2; exit 2; }

# The libraries that programs were linked to, but for those of the C library and of CUDA, which the machine has.
libraries_of() {
  ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|libcuda[^/]*|libcublas[^/]*|libnccl)\.so'
}

pack() (
  set -e
  file=$(realpath -m "${1-$root/build/lckv-gpu.tar.xz}")
  cd "$root"
  command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || deploy/install-cuda.sh
  [[ -f build/cuda/build.ninja ]] || cmake --preset cuda
  cmake --build build/cuda --target "${programs[@]}"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  tree=$work/lckv-gpu
  mkdir -p "$tree/bin" "$tree/lib" "$(dirname "$file")"
  for program in "${programs[@]}"; do strip -o "$tree/bin/$program" "build/cuda/bin/$program"; done
  libraries_of "${programs[@]/#/build/cuda/bin/}" | xargs cp -Lt "$tree/lib"
  cp -r --parents "${inputs[@]}" "$tree"
  git describe --always --dirty >"$tree/commit"
  XZ_OPT="-3 -T0" tar -C "$work" -cJf "$file" lckv-gpu
  bytes=$(stat -c %s "$file")
  say "$file: $bytes bytes"
  ((bytes <= max_bytes)) || { say "more than $max_bytes bytes"; exit 1; }
)

# Where the programs and CUDA are. The programs find their own libraries beside them: CUDA's tools are to have theirs.
find_programs() {
  bin=$root/bin
  [[ -d $bin ]] || bin=$root/build/cuda/bin
  [[ -x $bin/cuda_test ]] || wrong "nothing is built in $bin" "gpu.sh pack, or cmake --build build/cuda"
  local nvcc
  nvcc=$(command -v nvcc) && toolkit=$(dirname "$(dirname "$(realpath "$nvcc")")")
  for folder in "${CUDA_HOME-}" /usr/local/cuda "$root/build/cuda-toolkit"; do
    [[ -n ${toolkit-} || ! -d $folder ]] || toolkit=$folder
  done
  libraries=${toolkit-}/lib64:${LD_LIBRARY_PATH-}
  sanitizer=$(PATH=$PATH:${toolkit-}/bin command -v compute-sanitizer)
}

# Why tests over the device are skipped, in this mode; empty: they run.
obstacle_of() {
  LD_LIBRARY_PATH=$libraries timeout 60 "$bin/cuda_test" --gtest_filter="*SiluMul*/cuda_$1_float32" 2>&1 |
    sed -n '/: Skipped$/{n;p;q}'
}

fact() { printf '%s\t%s\n' "$1" "$2" >>"$out/facts.tsv"; }
write_facts() {
  fact date "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  fact commit "$(cat "$root/commit" 2>/dev/null || git -C "$root" describe --always --dirty)"
  fact device "$(nvidia-smi -i 0 --query-gpu=name --format=csv,noheader 2>/dev/null)"
  fact driver "$(nvidia-smi -i 0 --query-gpu=driver_version --format=csv,noheader 2>/dev/null)"
  fact cuda "$("${toolkit-}/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
}

# took PART NAME SECONDS LIMIT EXIT_CODE REASON; a reason stands where it did not run.
took() { (IFS=$'\t'; echo "$*") >>"$out/runs.tsv"; }
# measure PART NAME LIMIT COMMAND...: runs a command for so many seconds at most.
measure() {
  local part=$1 name=$2 limit=$3 begin=$SECONDS status=0
  shift 3
  say "$name"
  (cd "$root" && LD_LIBRARY_PATH=$libraries timeout -k 5 "$limit" "$@") >"$out/$name.log" 2>&1 </dev/null || status=$?
  took "$part" "$name" $((SECONDS - begin)) "$limit" "$status" ""
}
# measure_tests PART NAME LIMIT PROGRAM FILTER
measure_tests() { measure "$1" "$2" "$3" "$bin/$4" --gtest_output="json:$out/$2.json" --gtest_filter="$5"; }

run_kernels() { measure_tests kernels kernels 65 cuda_test '*'; }
run_golden() { measure_tests golden golden 50 golden_cuda_test '*'; }
run_equalities() {
  # Threads are the host's; the walks' own test is no equality.
  measure_tests equalities equalities 90 equality_cuda_test '*/Batch.*:*BlockSizesAreEqual*:*Offloaded*:*HitIsMiss/*:*ChunkedIsWhole*'
}
run_serving() {
  measure serving serving 80 python3 tests/support/gpu_serving.py "$bin" deploy/models/demo cuda:0
}
run_bench() {
  local free
  free=$(obstacle_of free)
  if [[ -n $free ]]; then
    took bench bench 0 0 0 "$free"
    return
  fi
  measure bench device-bench 60 "$bin/lckv_device_bench" --device cuda:0
  measure bench serving-decode 40 "$bin/lckv_serving_bench" --device cuda:0 decode
  measure bench serving-prefill 40 "$bin/lckv_serving_bench" --device cuda:0 prefill
}
run_large() {
  measure large large-steps 210 "$bin/lckv_device_bench" --device cuda:0 large-steps
  measure large protocol 320 "$bin/lckv_protocol_bench" "$bin/lckv" --device cuda:0 7b
}
run_offloaded() {
  measure offloaded protocol-offloaded 530 "$bin/lckv_protocol_bench" "$bin/lckv" --device cuda:0 30b-offloaded
}
run_sanitizer() {
  local tool
  if [[ -z $sanitizer ]]; then
    took sanitizer sanitizer 0 0 0 "no compute-sanitizer in PATH or the toolkit"
    return
  fi
  # Our own kernels: cuBLASLt has none of ours.
  for tool in memcheck racecheck initcheck synccheck; do
    measure sanitizer "$tool" 28 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$bin/cuda_test" --gtest_output="json:$out/$tool.json" --gtest_filter='*/cuda_reproducible_bfloat16'
  done
}

run() {
  local wanted=() allow_no_device= obstacle part
  out=$root/build/gpu
  while [[ $# -gt 0 ]]; do
    case $1 in
      --only)
        [[ " ${parts[*]} ${named_parts[*]} " == *" ${2-} "* ]] || wrong "--only \"${2-}\"" "${parts[*]} ${named_parts[*]}"
        wanted+=("$2"); shift 2 ;;
      --out) out=$(realpath -m "${2:?--out needs a folder}"); shift 2 ;;
      --allow-no-device) allow_no_device=1; shift ;;
      *) wrong "unknown argument \"$1\"" "--only PART, --out FOLDER, --allow-no-device" ;;
    esac
  done
  find_programs
  mkdir -p "$out"
  rm -f "$out"/{facts.tsv,runs.tsv}
  write_facts
  obstacle=$(obstacle_of reproducible)
  [[ ${#wanted[@]} -gt 0 ]] || wanted=("${parts[@]}")
  for part in "${parts[@]}" "${named_parts[@]}"; do
    [[ " ${wanted[*]} " == *" $part "* ]] || continue
    if [[ -n $obstacle ]]; then took "$part" "$part" 0 0 0 "$obstacle"; else "run_$part"; fi
  done
  python3 "$root/tests/support/gpu_report.py" "$out" || exit 1
  [[ -z $obstacle || -n $allow_no_device ]] || { say "no part ran: $obstacle"; exit 1; }
}

case ${1-} in
  pack) [[ $# -le 2 ]] || wrong "pack \"$3\"" "pack [FILE]"; pack "${@:2}" ;;
  run) run "${@:2}" ;;
  *) wrong "unknown command \"${1-}\"" "pack [FILE], run [--only PART]... [--out FOLDER] [--allow-no-device]" ;;
esac
