#!/usr/bin/env bash
# Installs and upgrades the chart at a real Kubernetes API server without nodes, on loopback. The first run builds the
# server (minutes). Nothing is left running, and nothing is written but to build/tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/install-deps.sh --cluster
version=$(sed -n 's/^kubernetes_version=//p' deploy/install-deps.sh)
server=$PWD/build/tools/kube-apiserver-$version
export PATH=$PWD/build/tools/bin:$PATH

say() { echo "cluster: $*" >&2; }

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
  etcd --data-dir "$work/etcd" --listen-client-urls "http://127.0.0.1:$store" \
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

trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d)
start
# Helm keeps what it has heard of a server in the home folder.
HOME=$work KUBECONFIG=$work/kubeconfig LCKV_CLUSTER=https://127.0.0.1:$port PYTHONDONTWRITEBYTECODE=1 \
  /usr/bin/python3 -m pytest -q -p no:cacheprovider --basetemp "$work/pytest" tests/helm/cluster_check.py
