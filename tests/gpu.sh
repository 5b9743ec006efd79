#!/usr/bin/env bash
# Everything that needs a GPU, as one archive and one command: for a machine with GPU, driver, CUDA toolkit and python3,
# but without a network, in 9 minutes at most.
#
#   gpu.sh pack [--programs-only] [FILE]
#                           builds, and packs programs, their libraries and what they read; default:
#                           build/lckv-gpu.tar.xz. --programs-only leaves out what a source tree holds: unpacked in its
#                           build folder, `gpu.sh run` of the tree finds it
#   gpu.sh run [--only PART]... [--out FOLDER] [--allow-no-device]
#                           from the unpacked archive or the source tree, into build/gpu; default: what 9 minutes are
#                           enough for
#
# Parts: kernels, golden, equalities, serving, bench, sanitizer; where they are named, large (decode of 7B's shape, the
# published protocol) and offloaded (the same of 30B, from host memory), up to 9 minutes each, on 80 GB at least. Each
# run has a deadline, and none keeps the others from running. After each there lie a .json file, a table and the logs in
# the folder. Where something failed, was not done in time, or without a device, the exit code is 1.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
max_bytes=60000000
programs=(cuda_test golden_cuda_test equality_cuda_test lckv_device_bench lckv_protocol_bench lckv_serving_bench
  lckv lckv-router lckv-worker)
inputs=(tests/gpu.sh tests/support/gpu_run.py tests/support/gpu_report.py tests/support/gpu_serving.py
  tests/golden/cases tests/bench/models deploy/models/demo)

say() { echo "gpu: $*" >&2; }
wrong() { echo "gpu: $1; valid: $2" >&2; exit 2; }

# The libraries that programs were linked to, but for those of the C library and of CUDA, which the machine has.
libraries_of() {
  ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|libcuda[^/]*|libcublas[^/]*|libnccl)\.so'
}

pack() {
  local programs_only= file bytes tree
  if [[ ${1-} == --programs-only ]]; then programs_only=1; shift; fi
  [[ $# -le 1 && ${1-} != -* ]] || wrong "pack \"$*\"" "pack [--programs-only] [FILE]"
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
  [[ -n $programs_only ]] || cp -r --parents "${inputs[@]}" "$tree"
  git describe --always --dirty >"$tree/commit"
  # The programs have much in common: what counts is how far back xz looks.
  tar -C "$work" -c lckv-gpu | xz -T1 --lzma2=preset=1,dict=128MiB >"$file"
  bytes=$(stat -c %s "$file")
  say "$file: $bytes bytes"
  ((bytes <= max_bytes)) || { say "more than $max_bytes bytes"; exit 1; }
}

case ${1-} in
  pack) pack "${@:2}" ;;
  run) exec python3 "$root/tests/support/gpu_run.py" "${@:2}" ;;
  *) wrong "unknown command \"${1-}\"" "pack [--programs-only] [FILE], run [--only PART]... [--out FOLDER] [--allow-no-device]" ;;
esac
