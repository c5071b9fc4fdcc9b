#!/usr/bin/env bash
# Verify a claim of distillation speed against a RaT-BPTT run made beside it: one row of the record table (docs/speedrun.md).
# Usage: speedrun.sh TRACK [--out DIR] [--seeds 0 1 2] [--write] [...] [-- FLAGS OF THE CLAIM]; the same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
if [ $# -eq 0 ]; then
  echo "speedrun: give a track first, such as digits_ipc1" >&2
  exit 2
fi
exec "$PYTHON" benchmarks/speedrun.py --track "$1" --out "save/speedrun/$1" "${@:2}"
