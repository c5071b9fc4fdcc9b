#!/usr/bin/env bash
# RaT-BPTT against AT-BPTT's positions alone, its windows alone, and both: same budget, same seeds, one table.
# Usage: see study.sh. Stopped or out of time, the same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
start_study ablation \
  --variant "rat-bptt" "--truncation rat-bptt" \
  --variant "positions only" "--truncation at-bptt-positions" \
  --variant "windows only" "--truncation at-bptt-windows -d $radius" \
  --variant "at-bptt" "--truncation at-bptt -d $radius"
