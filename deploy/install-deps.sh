#!/usr/bin/env bash
# Installs what LCKV Serve needs on Debian 12 or a later Debian or Ubuntu. Idempotent; does nothing, and needs no
# root, where everything is there.
#
#   install-deps.sh            to build, and to run every test
#   install-deps.sh --build    to build only
#   install-deps.sh --runtime  shared libraries of the built programs only
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/build/tools/bin
grpcurl_version=v1.9.1  # the last one that Debian 12's Go builds

libraries=(libgrpc++-dev libprotobuf-dev libabsl-dev libdnnl-dev libgloo-dev libhwy-dev
           libsentencepiece-dev libspdlog-dev libssl-dev prometheus-cpp-dev)
build=("${libraries[@]}" ca-certificates g++ cmake ninja-build pkg-config mold ccache
       protobuf-compiler protobuf-compiler-grpc libcli11-dev nlohmann-json3-dev libbenchmark-dev
       libgtest-dev libgmock-dev libgomp1)
tests=(clang-14 clang-format-14 libclang-rt-14-dev llvm-14 python3 python3-grpcio python3-protobuf
       python3-pytest python3-yaml openssl procps)
observability=(python3-pil python3-venv fonts-dejavu-core)
grafana_sdk='grafana-foundation-sdk==1769699379!11.6.0'  # what deploy/grafana/dashboards.py is written for

say() { echo "install-deps: $*" >&2; }
fail() { say "$*"; exit 1; }

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

refreshed=
as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "needs root to run: $* (be root, or install sudo)"
  fi
}
refresh() {
  [[ -n $refreshed ]] || as_root apt-get update -q >&2
  refreshed=yes
}
install_packages() {
  local missing=()
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "installing ${missing[*]}"
  refresh
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}" </dev/null >&2
}

# The shared libraries that the development packages stand for, under the names of this release.
runtime_packages() {
  echo ca-certificates
  echo libgomp1
  apt-cache depends "${libraries[@]}" | awk '$1 == "Depends:" && $2 ~ /^lib/ && $2 !~ /-dev$/ { print $2 }' | sort -u
}

# The package would start a server; its programs are all we need.
install_prometheus() {
  local missing=()
  for program in promtool prometheus; do
    command -v $program >/dev/null || [[ -x $tools/$program ]] || missing+=("$program")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "taking ${missing[*]} from the package prometheus"
  refresh
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download -q prometheus >&2 && dpkg-deb -x prometheus_*.deb unpacked)
  mkdir -p "$tools"
  for program in "${missing[@]}"; do
    install -m 755 "$folder/unpacked/usr/bin/$program" "$tools/$program"
  done
  rm -rf "$folder"
}

# In an environment of its own: Debian has no package of it.
install_grafana_sdk() {
  local venv=$root/build/tools/dashboards
  [[ -f $venv/installed && $(<"$venv/installed") == "$grafana_sdk" ]] && return
  say "installing $grafana_sdk"
  /usr/bin/python3 -m venv --clear "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check "$grafana_sdk" </dev/null >&2
  echo "$grafana_sdk" >"$venv/installed"
}

install_grpcurl() {
  command -v grpcurl >/dev/null || [[ -x $tools/grpcurl ]] && return
  local go
  go=$(command -v go || true)
  [[ -n $go || ! -x /usr/local/go/bin/go ]] || go=/usr/local/go/bin/go
  if [[ -z $go ]]; then
    install_packages golang-go
    go=go
  fi
  say "building grpcurl $grpcurl_version"
  mkdir -p "$tools"
  GOBIN=$tools GOFLAGS=-modcacherw "$go" install \
    "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" >&2
}

command -v dpkg-query >/dev/null || fail "this system has no dpkg; see the package lists in $0"
case ${1-} in
  --runtime)
    apt-cache show libgrpc++-dev >/dev/null 2>&1 || refresh
    mapfile -t runtime < <(runtime_packages)
    install_packages "${runtime[@]}"
    ;;
  --build)
    install_packages "${build[@]}"
    ;;
  "")
    install_packages "${build[@]}" "${tests[@]}" "${observability[@]}"
    install_prometheus
    install_grafana_sdk
    install_grpcurl
    ;;
  *) fail "unknown argument \"$1\"; valid: --build, --runtime" ;;
esac
