#!/usr/bin/env bash
# RaT-BPTT, AT-BPTT and FTD after the same wall time, with hard, learnt and a teacher's labels, beside real images.
# Usage: --dataset digits|mnist|fashion-mnist|cifar10 --ipc 1 --out DIR --seconds S [--seeds 0 1 2] [--minutes M] [--jobs N]
# [-- FLAGS OF main.py]; see benchmarks/scoreboard.py. Stopped or out of time, the same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$PYTHON" benchmarks/scoreboard.py "$@"
