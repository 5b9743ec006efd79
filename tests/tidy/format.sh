#!/usr/bin/env bash
# Formats every C++ file of ours in place; --check names those that would change and exits 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v clang-format-14 >/dev/null || { echo "format: clang-format-14 is not installed" >&2; exit 2; }
mapfile -t files < <(find rpc router client worker kernels tests \( -name "*.cc" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh" \) | sort)
case ${1-} in
  "") clang-format-14 -i "${files[@]}" ;;
  --check)
    status=0
    for file in "${files[@]}"; do
      if ! clang-format-14 "$file" | cmp -s - "$file"; then
        echo "$file: not as .clang-format has it; run tests/tidy/format.sh"
        status=1
      fi
    done
    exit $status
    ;;
  *) echo "format: unknown argument \"$1\"; valid: --check" >&2; exit 2 ;;
esac
