#!/usr/bin/env bash
# Prints the packages that the shared libraries of a program come from: runtime-packages.sh PROGRAM
set -euo pipefail

# ldd says /lib where a package may say /usr/lib, so only the path's end can be asked for.
ldd "$1" | sed -n 's|.* => \(/[^ ]*\) .*|*\1|p' | xargs dpkg-query -S | cut -d: -f1 | sort -u
