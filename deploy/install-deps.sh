#!/usr/bin/env bash
# Installs what LCKV Serve needs on Debian 12 or a later Debian or Ubuntu. Idempotent; does nothing, and needs no
# root, where everything is there.
#
#   install-deps.sh            to build, and to run every test
#   install-deps.sh --build    to build only
#   install-deps.sh --runtime  shared libraries of the built programs only
#   install-deps.sh --cluster  to run every test, tests/helm/cluster.sh among them
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/build/tools/bin
# Go programs are built with this one or a newer one.
go_version=1.24.9
kubernetes_version=1.34.1
schemas=$root/build/tools/schemas-$kubernetes_version
api_server=$root/build/tools/kube-apiserver-$kubernetes_version

libraries=(libgrpc++-dev libprotobuf-dev libabsl-dev libdnnl-dev libgloo-dev libhwy-dev
           libjemalloc-dev libsentencepiece-dev libspdlog-dev libssl-dev prometheus-cpp-dev)
build=("${libraries[@]}" ca-certificates g++ cmake ninja-build pkg-config mold ccache
       protobuf-compiler protobuf-compiler-grpc libcli11-dev nlohmann-json3-dev libbenchmark-dev
       libgtest-dev libgmock-dev libgomp1)
tests=(clang-14 clang-format-14 curl libclang-rt-14-dev libnghttp2-dev llvm-14 python3 python3-grpcio
       python3-protobuf python3-pytest python3-yaml openssl procps)
observability=(python3-pil python3-venv fonts-dejavu-core)
grafana_sdk='grafana-foundation-sdk==1769699379!11.6.0'  # what deploy/grafana/dashboards.py is written for

say() { echo "install-deps: $*" >&2; }
fail() { say "$*"; exit 1; }

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

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

# take_programs PACKAGE PROGRAM...: out of a package that would start a server if it were installed.
take_programs() {
  local package=$1 missing=() program
  shift
  for program in "$@"; do
    command -v "$program" >/dev/null || [[ -x $tools/$program ]] || missing+=("$program")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "taking ${missing[*]} from the package $package"
  refresh
  (cd "$scratch" && apt-get download -q "$package" >&2 && dpkg-deb -x "$package"_*.deb "$package")
  mkdir -p "$tools"
  for program in "${missing[@]}"; do
    install -m 755 "$scratch/$package/usr/bin/$program" "$tools/$program"
  done
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

# Sets `go` to one that builds the programs below; where the system's is older, to one that comes as a module itself.
go=
find_go() {
  [[ -z $go ]] || return 0
  go=$(command -v go || true)
  [[ -n $go || ! -x /usr/local/go/bin/go ]] || go=/usr/local/go/bin/go
  if [[ -z $go ]]; then
    install_packages golang-go
    go=go
  fi
  export GOFLAGS=-modcacherw GOTOOLCHAIN=local
  local version folder
  version=$("$go" env GOVERSION)
  [[ $(printf '%s\n' "go$go_version" "$version" | sort -V | head -n 1) != "go$go_version" ]] || return 0
  say "taking Go $go_version from its module: this system has $version"
  folder=$(module golang.org/toolchain "v0.0.1-go$go_version.linux-$("$go" env GOARCH)")
  # An older Go leaves these bits out.
  chmod -R u+x "$folder/bin" "$folder/pkg/tool"
  go=$folder/bin/go
}

# module PATH VERSION: the folder of a module that the module proxy has.
module() {
  "$go" mod download -json "$1@$2" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p' || fail "there is no module $1@$2 to be had"
}

# install_go_program PACKAGE VERSION
install_go_program() {
  [[ ! -x $tools/${1##*/} ]] || return 0
  find_go
  say "building ${1##*/} $2"
  mkdir -p "$tools"
  GOBIN=$tools "$go" install "$1@$2" >&2
}

# What tests/helm checks manifests against: the API of the newest Kubernetes that the chart states, as
# api/VERSION.json and apis/GROUP/VERSION.json (kubectl-validate brings older ones), and others' kinds.
install_schemas() {
  [[ ! -d $schemas ]] || return 0
  find_go
  say "taking schemas of Kubernetes $kubernetes_version and of custom kinds from their modules"
  local unfinished=$schemas.unfinished folder file name
  rm -rf "$unfinished"
  mkdir -p "$unfinished/crds"
  folder=$(module k8s.io/kubernetes "v$kubernetes_version")/api/openapi-spec/v3
  for file in "$folder"/api__v1_openapi.json "$folder"/apis__*__v*_openapi.json; do
    name=${file##*/}
    name=${name%_openapi.json}
    install -D -m 644 "$file" "$unfinished/kubernetes/${name//__//}.json"
  done
  folder=$(module sigs.k8s.io/lws v0.7.0)/config/crd/bases
  cp "$folder/leaderworkerset.x-k8s.io_leaderworkersets.yaml" "$unfinished/crds"
  folder=$(module github.com/kedacore/keda/v2 v2.17.2)/config/crd/bases
  cp "$folder/keda.sh_scaledobjects.yaml" "$unfinished/crds"
  folder=$(module github.com/prometheus-operator/prometheus-operator v0.85.0)/example/prometheus-operator-crd
  for name in servicemonitors podmonitors prometheusrules; do
    cp "$folder/monitoring.coreos.com_$name.yaml" "$unfinished/crds"
  done
  folder=$(module github.com/cert-manager/cert-manager v1.18.2)/deploy/crds
  # Its labels are to be filled in by a chart.
  grep -v '{{' "$folder/crd-certificates.yaml" >"$unfinished/crds/cert-manager.io_certificates.yaml"
  chmod -R u+w "$unfinished"
  mv "$unfinished" "$schemas"
}

install_api_server() {
  [[ ! -x $api_server ]] || return 0
  find_go
  say "building kube-apiserver $kubernetes_version"
  local file own flags="-s -w -X k8s.io/component-base/version.gitVersion=v$kubernetes_version"
  file=$(module k8s.io/kubernetes "v$kubernetes_version")/go.mod
  mkdir "$scratch/server"
  (
    cd "$scratch/server"
    export GOFLAGS="$GOFLAGS -mod=mod" CGO_ENABLED=0
    "$go" mod init server 2>/dev/null
    "$go" mod edit -require "k8s.io/kubernetes@v$kubernetes_version"
    # Its own modules stand beside it in its repository, and are published as v0.
    for own in $(sed -n 's|^\t\(k8s.io/[a-z-]*\) => ./staging.*|\1|p' "$file"); do
      "$go" mod edit -replace "$own=$own@v0.${kubernetes_version#1.}"
    done
    "$go" build -trimpath -ldflags "$flags" -o "$api_server.unfinished" k8s.io/kubernetes/cmd/kube-apiserver >&2
  )
  mv "$api_server.unfinished" "$api_server"
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
  "" | --cluster)
    install_packages "${build[@]}" "${tests[@]}" "${observability[@]}"
    take_programs prometheus prometheus promtool
    install_grafana_sdk
    command -v grpcurl >/dev/null || install_go_program github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.1
    install_go_program helm.sh/helm/v3/cmd/helm v3.19.0
    install_go_program sigs.k8s.io/kubectl-validate v0.0.4
    install_schemas
    if [[ -n ${1-} ]]; then
      take_programs etcd-server etcd
      install_api_server
    fi
    ;;
  *) fail "unknown argument \"$1\"; valid: --build, --runtime, --cluster" ;;
esac
