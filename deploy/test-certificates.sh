#!/usr/bin/env bash
# Makes a CA and certificates for trying out TLS; never for production: keys are not protected.
#
# deploy/test-certificates.sh FOLDER [DAYS]: writes ca.crt and ca.key, and for each of router, worker and client
# NAME.crt and NAME.key, valid for DAYS (30) and for the names NAME and localhost and the address 127.0.0.1. A CA that
# is there already is used again, so that a second run renews the certificates under it. DAYS 0: expired yesterday.
set -euo pipefail
[[ $# -ge 1 && $# -le 2 && ${2:-30} =~ ^[0-9]+$ ]] || { echo "usage: $0 FOLDER [DAYS]" >&2; exit 2; }
command -v openssl >/dev/null || { echo "$0: openssl is not installed" >&2; exit 1; }
folder=$1
days=${2:-30}
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; chmod 600 "$1"; }

if [[ ! -f $folder/ca.crt ]]; then
  key "$folder/ca.key"
  openssl req -x509 -new -key "$folder/ca.key" -days 3650 -subj "/CN=LCKV test CA $RANDOM$RANDOM" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -out "$folder/ca.crt"
fi

# `openssl ca` alone can write a certificate that has expired.
touch "$work/index"
cat > "$work/ca.conf" <<END
[ca]
default_ca = test
[test]
database = $work/index
new_certs_dir = $work
default_md = sha256
policy = any
rand_serial = yes
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
END
at() { date -u -d "$1" +%y%m%d%H%M%SZ; }
if [[ $days == 0 ]]; then
  begin=$(at "-2 days") end=$(at "-1 day")
else
  begin=$(at "-1 hour") end=$(at "+$days days")
fi
for name in router worker client; do
  key "$work/$name.key"
  openssl req -new -key "$work/$name.key" -subj "/CN=$name" \
    -addext "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1" -out "$work/$name.csr"
  openssl ca -batch -notext -config "$work/ca.conf" -cert "$folder/ca.crt" -keyfile "$folder/ca.key" \
    -startdate "$begin" -enddate "$end" -in "$work/$name.csr" -out "$work/$name.crt" 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
  mv "$work/$name.key" "$work/$name.crt" "$folder/"
done
