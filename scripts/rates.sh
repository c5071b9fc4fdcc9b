#!/usr/bin/env bash
# RaT-BPTT at outer learning rates from the studies' own on, and at each with the average of its steps judged too.
# Usage: see study.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
variants=()
for rate in 0.005 0.01 0.02 0.05 0.1; do
  variants+=(--variant "lr $rate" "--lr $rate" --variant "lr $rate, average" "--lr $rate --iterate_average 9")
done
inner+=(--truncation rat-bptt)
start_study rates "${variants[@]}"
