#!/usr/bin/env bash
# Restarts replicas one after another without losing a stream: drains one, waits until its streams have ended or
# moved, restarts it, waits until it is ready as a new life, and goes on to the next.
#
#   rolling-restart.sh --restart COMMAND [--router HOST:PORT] [--grace TIME] [--timeout SECONDS] [--lckv PROGRAM] [ADDRESS...]
#
# COMMAND is run by bash with the replica's address as $1, and must return once the old process has ended and the new one
# is being started on the same address. Without addresses: all replicas of the router. --grace: how long streams may go on
# before they move (default 0s: at once). --timeout: of each wait. Ends with 1 at the first replica that keeps its streams,
# which takes new work again, or that does not come back; those behind it are left as they are.
set -euo pipefail

router=127.0.0.1:50051
grace=0s
timeout=300
restart=
lckv=lckv
addresses=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --router) router=${2:?--router needs HOST:PORT}; shift 2 ;;
    --grace) grace=${2:?--grace needs a time}; shift 2 ;;
    --timeout) timeout=${2:?--timeout needs seconds}; shift 2 ;;
    --restart) restart=${2:?--restart needs a command}; shift 2 ;;
    --lckv) lckv=${2:?--lckv needs a program}; shift 2 ;;
    -*) echo "rolling-restart: unknown flag \"$1\"; valid: --router, --grace, --timeout, --restart, --lckv" >&2; exit 2 ;;
    *) addresses+=("$1"); shift ;;
  esac
done
command -v "$lckv" >/dev/null || { echo "rolling-restart: no program \"$lckv\"; --lckv says where it is" >&2; exit 2; }
[[ -n $restart ]] || { echo "rolling-restart: --restart is needed: what restarts the replica at \$1" >&2; exit 2; }

# fields ADDRESS NAME...: those fields of one replica, each on a line.
fields() {
  local replicas
  replicas=$("$lckv" replicas --router "$router" --json) || return
  python3 -c '
import json, sys
for replica in json.load(sys.stdin)["replicas"]:
    if replica["address"] == sys.argv[1]:
        print(*(replica[name] for name in sys.argv[2:]), sep="\n")
' "$@" <<<"$replicas"
}
# until_true WHAT CONDITION...: waits; fails after --timeout.
until_true() {
  local what=$1 deadline=$((SECONDS + timeout))
  shift
  until "$@"; do
    if ((SECONDS >= deadline)); then echo "rolling-restart: not within $timeout s: $what" >&2; return 1; fi
    sleep 0.2
  done
}
is_empty() {
  local load
  mapfile -t load < <(fields "$1" state num_running num_waiting)
  [[ ${load[0]-} == STATE_DRAINING && ${load[1]-} == 0 && ${load[2]-} == 0 ]]
}
is_ready_again() {
  local now
  mapfile -t now < <(fields "$1" state replica_id)
  [[ ${now[0]-} == STATE_READY && ${now[1]-} != "$2" ]]
}

if [[ ${#addresses[@]} -eq 0 ]]; then
  replicas=$("$lckv" replicas --router "$router" --json) || exit 1  # which has said why
  mapfile -t addresses < <(python3 -c '
import json, sys
for replica in json.load(sys.stdin)["replicas"]:
    print(replica["address"])
' <<<"$replicas")
fi
[[ ${#addresses[@]} -gt 0 ]] || { echo "rolling-restart: the router at $router knows no replica" >&2; exit 1; }
for address in "${addresses[@]}"; do
  id=$(fields "$address" replica_id)
  [[ -n $id ]] || { echo "rolling-restart: the router at $router knows no replica at $address" >&2; exit 1; }
  echo "$address: draining"
  "$lckv" drain "$id" --grace "$grace" --router "$router" >/dev/null
  if ! until_true "$address is empty" is_empty "$address"; then
    "$lckv" drain "$id" --undo --router "$router" >/dev/null && echo "$address: takes work again" >&2
    exit 1
  fi
  echo "$address: restarting"
  bash -c "$restart" restart "$address"
  until_true "$address is ready again" is_ready_again "$address" "$id"
  echo "$address: ready"
done
