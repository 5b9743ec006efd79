#!/usr/bin/env bash
# Compiles the CUDA backend and what it is linked into, and runs its tests; those that need a GPU say that they are
# skipped. Brings the compiler along where no toolkit is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || deploy/install-cuda.sh
[[ -f build/cuda/build.ninja ]] || cmake --preset cuda
cmake --build build/cuda --target lckv-worker cuda_test
ctest --test-dir build/cuda -L cuda_build -j2 --output-on-failure
