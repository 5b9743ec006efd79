#!/usr/bin/env bash
# Installs and upgrades the chart at a real Kubernetes API server without nodes, on loopback. The first run builds the
# server from its module (minutes) into build/tools; etcd is taken from Debian's package. Nothing is left running.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
tools=$root/build/tools
version=$(sed -n 's/^kubernetes_version=//p' deploy/install-deps.sh)
server=$tools/kube-apiserver-$version
deploy/install-deps.sh

say() { echo "cluster: $*" >&2; }

build_server() {
  [[ ! -x $server ]] || return 0
  local go folder own
  go=$(command -v go || echo /usr/local/go/bin/go)
  folder=$(mktemp -d)
  cd "$folder"
  say "building kube-apiserver $version"
  export GOFLAGS="-modcacherw -mod=mod ${GOFLAGS-}" CGO_ENABLED=0
  "$go" mod init server 2>/dev/null
  printf 'package main\n\nimport _ "k8s.io/kubernetes/cmd/kube-apiserver"\n' >server.go
  "$go" mod edit -require "k8s.io/kubernetes@v$version"
  # Its own modules stand beside it in its repository, and are published as v0.
  "$go" mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p' >mod-file
  own=$(sed -n 's|^\t\(k8s.io/[a-z-]*\) => ./staging.*|\1|p' "$(cat mod-file)")
  for module in $own; do "$go" mod edit -replace "$module=$module@v0.${version#1.}"; done
  "$go" build -trimpath -ldflags '-s -w' -o "$server" k8s.io/kubernetes/cmd/kube-apiserver >&2
  cd "$root"
  rm -rf "$folder"
}

take_etcd() {
  [[ ! -x $tools/bin/etcd ]] || return 0
  say "taking etcd from the package etcd-server"
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download -q etcd-server >&2 && dpkg-deb -x etcd-server_*.deb unpacked)
  install -m 755 "$folder/unpacked/usr/bin/etcd" "$tools/bin/etcd"
  rm -rf "$folder"
}

work=
pids=()
stop() {
  local status=$?
  trap - EXIT INT TERM
  # The server first: it would complain about its store.
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  [[ -z $work ]] || rm -rf "$work"
  exit "$status"
}

free_ports() {
  /usr/bin/python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))
PYTHON
}

start() {
  read -r store peers port < <(free_ports 3)
  "$tools/bin/etcd" --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$store" \
    --advertise-client-urls "http://127.0.0.1:$store" --listen-peer-urls "http://127.0.0.1:$peers" \
    >"$work/etcd.log" 2>&1 &
  pids=($!)
  openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
  echo 'token,admin,1,system:masters' >"$work/tokens.csv"
  # Nobody gives pods their service account's token here, and they do not ask for it.
  "$server" --etcd-servers "http://127.0.0.1:$store" --cert-dir "$work/certificates" --bind-address 127.0.0.1 \
    --secure-port "$port" --service-cluster-ip-range 10.0.0.0/16 --authorization-mode RBAC \
    --token-auth-file "$work/tokens.csv" --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$work/accounts.key" --service-account-signing-key-file "$work/accounts.key" \
    --disable-admission-plugins ServiceAccount >"$work/server.log" 2>&1 &
  pids=($! "${pids[@]}")
  cat >"$work/kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "https://127.0.0.1:$port", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: token}}]
contexts: [{name: local, context: {cluster: local, user: admin}}]
current-context: local
END
  for _ in $(seq 120); do
    kill -0 "${pids[@]}" 2>/dev/null || break
    [[ $(curl -sk -H 'Authorization: Bearer token' "https://127.0.0.1:$port/readyz") != ok ]] || return 0
    sleep 1
  done
  tail -n 5 "$work"/*.log >&2
  say "the server does not become ready"
  exit 1
}

build_server
take_etcd
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d)
start
KUBECONFIG=$work/kubeconfig LCKV_CLUSTER=https://127.0.0.1:$port PYTHONDONTWRITEBYTECODE=1 \
  /usr/bin/python3 -m pytest -q -p no:cacheprovider tests/helm/cluster_check.py
