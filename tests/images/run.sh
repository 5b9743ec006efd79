#!/usr/bin/env bash
# Builds every image over a base made here, prints what each adds to it, and runs each as a cluster would: as its own
# user, as PID 1, on a read-only root file system (test_images.py). Needs root, the network and the time of a full build.
#
#   run.sh [--tree DIR] [-- OPTIONS...]
#
# --tree: a folder to work in that is kept, so that the next run builds only what changed. OPTIONS go to `buildah build`.
# Where overlay file systems cannot be stacked, run it with STORAGE_DRIVER=vfs.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
export PATH=$root/build/tools/bin:$PATH
python=/usr/bin/python3  # the one that Debian's pytest belongs to
# What an image may add to its base, in MB.
declare -A limit=([router]=80 [worker-cpu]=250 [client]=80 [worker-cuda]=2500)

fail() { echo "images: $*" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

tree=
inside=
while [[ $# -gt 0 ]]; do
  case $1 in
    --tree) tree=$(realpath "${2:?--tree needs a folder}"); shift 2 ;;
    --inside) inside=yes; shift ;;
    --) shift; break ;;
    *) fail "unknown argument \"$1\"; valid: --tree, and -- before options of buildah build" ;;
  esac
done

if [[ -z $inside ]]; then
  [[ $EUID -eq 0 ]] || fail "needs root: it mounts, and becomes other users"
  for program in buildah debootstrap grpcurl ip unshare; do
    command -v "$program" >/dev/null ||
      fail "$program is missing: deploy/install-deps.sh; apt-get install buildah debootstrap iproute2"
  done
  if [[ -z $tree ]]; then
    tree=$(mktemp -d)
    trap 'rm -rf "$tree"' EXIT
  fi
  # Mounts and processes end with it, however it ends.
  unshare --mount --pid --fork --kill-child --mount-proc "$0" --inside --tree "$tree" -- "$@"
  exit
fi

export TMPDIR=$tree/tmp
mkdir -p "$TMPDIR" "$tree/images"
store=(--root "$tree/store" --runroot "$tree/run")
base=$(sed -n 's/^ARG BASE=//p' deploy/docker/Dockerfile)

if ! buildah inspect "${store[@]}" --type image "$base" >/dev/null 2>&1; then
  say "base $base"
  suite=${base#debian:}
  rm -rf "$tree/base"
  debootstrap --variant=minbase "${suite%-slim}" "$tree/base" >"$tree/debootstrap.log" ||
    fail "$(tail -n 1 "$tree/debootstrap.log")"
  rm -rf "$tree"/base/var/cache/apt/archives/*.deb "$tree"/base/var/lib/apt/lists/*
  container=$(buildah from "${store[@]}" scratch)
  buildah add "${store[@]}" -q "$container" "$tree/base" / >/dev/null
  buildah commit "${store[@]}" -q --rm "$container" "$base" >/dev/null
  rm -rf "$tree/base"
fi

say "build"
# Kernels for one kind of GPU: there is none here to run them, and each kind takes its time.
deploy/docker/build.sh --tool buildah --tag test -- "${store[@]}" --isolation chroot --network host \
  --build-arg LCKV_CUDA_ARCHITECTURES=90a "$@"

# mounted IMAGE: where its root file system is.
mounted() {
  local container
  container=$(buildah from "${store[@]}" --pull-never "$1")
  buildah mount "${store[@]}" "$container"
}
bytes() { du -s --apparent-size -B1 "$1" | cut -f1; }

say "beyond the base, in MB"
base_bytes=$(bytes "$(mounted "$base")")
too_large=()
for target in "${!limit[@]}"; do
  folder=$(mounted "lckv-$target:test")
  ln -sfn "$folder" "$tree/images/$target"
  buildah inspect "${store[@]}" --type image "lckv-$target:test" >"$tree/images/$target.json"
  size=$((($(bytes "$folder") - base_bytes + 999999) / 1000000))
  printf '%-12s %4d of %d\n' "$target" "$size" "${limit[$target]}"
  ((size <= limit[$target])) || too_large+=("$target")
done

say "run"
# A network of its own: the ports are those that the images expose.
status=0
LCKV_IMAGES=$tree/images PYTHONDONTWRITEBYTECODE=1 unshare --net sh -euc 'ip link set lo up; exec "$@"' run \
  "$python" -m pytest -q -p no:cacheprovider tests/images/test_images.py || status=$?
buildah rm "${store[@]}" --all >/dev/null
[[ ${#too_large[@]} -eq 0 ]] || fail "larger than the limit: ${too_large[*]}"
exit "$status"
