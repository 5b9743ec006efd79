#!/usr/bin/env bash
# Compiles the CUDA backend and what it is linked into, runs its tests, of which those that need a GPU say that they are
# skipped, and packs what tests/gpu.sh takes to a machine with one. Brings the compiler along where no toolkit is
# installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] || deploy/install-cuda.sh
[[ -f build/cuda/build.ninja ]] || cmake --preset cuda
cmake --build build/cuda --target lckv-worker cuda_test golden_cuda_test equality_cuda_test
ctest --test-dir build/cuda -L cuda_build -j2 --output-on-failure
/usr/bin/python3 -m pytest -q -p no:cacheprovider tests/kernels/gpu_script_test.py
