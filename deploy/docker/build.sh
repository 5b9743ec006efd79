#!/usr/bin/env bash
# Builds the images of LCKV Serve with docker or buildah: lckv-router, lckv-worker-cpu, lckv-client and lckv-worker-cuda.
#
#   build.sh [--target TARGET]... [--tag TAG] [--base IMAGE] [--tool docker|buildah] [-- OPTIONS...]
#
# Without --target all, of which worker-cuda takes by far the longest and downloads CUDA's toolkit; the tag is the version,
# the base a Debian 12 or later or an Ubuntu. OPTIONS go to every `docker build` or `buildah build`, for example:
# --tool buildah -- --storage-driver vfs --isolation chroot --network host
# --target worker-cuda -- --build-arg LCKV_CUDA_ARCHITECTURES=90a
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
file=$root/deploy/docker/Dockerfile
valid=(router worker-cpu client worker-cuda)

say() { echo "build: $*" >&2; }
fail() { say "$*"; exit 1; }

targets=()
version=$(sed -n 's/^project(.* VERSION \([0-9.]*\).*/\1/p' "$root/CMakeLists.txt")
tag=$version
base=
tool=
while [[ $# -gt 0 ]]; do
  case $1 in
    --target | --tag | --base | --tool) [[ -n ${2-} ]] || fail "$1 needs a value" ;;&
    --target) targets+=("$2"); shift 2 ;;
    --tag) tag=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --tool) tool=$2; shift 2 ;;
    --) shift; break ;;
    *) fail "unknown argument \"$1\"; valid: --target, --tag, --base, --tool, and -- before options of the tool" ;;
  esac
done
for target in "${targets[@]}"; do
  [[ " ${valid[*]} " == *" $target "* ]] || fail "--target: unknown value \"$target\"; valid: ${valid[*]}"
done
[[ ${#targets[@]} -gt 0 ]] || targets=("${valid[@]}")

if [[ -z $tool ]]; then
  if docker info >/dev/null 2>&1; then
    tool=docker
  elif command -v buildah >/dev/null; then
    tool=buildah
  else
    fail "neither a docker daemon nor buildah is here"
  fi
fi
case $tool in
  docker)
    docker info >/dev/null 2>&1 || fail "no docker daemon answers \`docker info\`; --tool buildah needs none"
    build=(env DOCKER_BUILDKIT=1 docker build)
    ;;
  buildah)
    command -v buildah >/dev/null || fail "buildah is not installed"
    build=(buildah build --layers)
    ;;
  *) fail "--tool: unknown value \"$tool\"; valid: docker buildah" ;;
esac

revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
[[ -z $(git -C "$root" status --porcelain 2>/dev/null) ]] || revision+=-modified
for target in "${targets[@]}"; do
  say "building lckv-$target:$tag with $tool"
  "${build[@]}" --file "$file" --target "$target" --tag "lckv-$target:$tag" ${base:+--build-arg "BASE=$base"} \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" "$root" ||
    fail "$tool could not build $target"
done
say "built ${targets[*]/#/lckv-}, tag $tag"
