#!/usr/bin/env bash
# Brings CUDA's compiler and libraries into a folder, for machines without an installed toolkit. Idempotent; needs no
# root and no GPU.
#
#   install-cuda.sh [FOLDER]    default: build/cuda-toolkit
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1-$root/build/cuda-toolkit}
# One release; libraries that follow a numbering of their own are those that came with it.
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
          nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-nccl-cu13==2.28.9 nvidia-cuda-nvrtc==13.0.88
          nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51)

say() { echo "install-cuda: $*" >&2; }

[[ -f $folder/installed && $(<"$folder/installed") == "${packages[*]}" ]] && exit 0
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || { say "needs Python with venv: apt-get install python3-venv"; exit 1; }
say "installing into $folder"
rm -rf "$folder.unfinished" "$folder"
mkdir -p "$folder.unfinished"
/usr/bin/python3 -m venv "$folder.unfinished/venv"
"$folder.unfinished/venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-compile \
  --target "$folder.unfinished/packages" "${packages[@]}" </dev/null >&2
rm -r "$folder.unfinished/venv"
# Some packages have a folder of their own beside the release's.
mv "$folder.unfinished/packages/nvidia/cu13" "$folder.unfinished/toolkit"
cp -r "$folder.unfinished/packages/nvidia/nccl/." "$folder.unfinished/toolkit"
# Of all that is the release's, and of NCCL, which has one of its own.
cp "$folder.unfinished"/packages/nvidia_cublas-*.dist-info/licenses/License.txt "$folder.unfinished/toolkit/LICENSE"
cp "$folder.unfinished"/packages/nvidia_nccl_cu13-*.dist-info/licenses/License.txt "$folder.unfinished/toolkit/LICENSE.nccl"
rm -r "$folder.unfinished/packages"
# Linkers look for names without a version.
cd "$folder.unfinished/toolkit/lib"
for library in lib*.so.*; do
  name=${library%%.so.*}.so
  [[ -e $name ]] || ln -s "$library" "$name"
done
ln -sfn lib ../lib64
cd "$root"
echo "${packages[*]}" >"$folder.unfinished/toolkit/installed"
mv "$folder.unfinished/toolkit" "$folder"
rm -r "$folder.unfinished"
