#!/usr/bin/env bash
# AT-BPTT with one setting at a time changed: radius d, temperature tau, stage thresholds, patience.
# Usage: see study.sh. Stopped or out of time, the same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
base="--truncation at-bptt -d $radius"
start_study sensitivity \
  --variant "default" "$base" \
  --variant "d 1" "--truncation at-bptt -d 1" \
  --variant "d $((2 * radius))" "--truncation at-bptt -d $((2 * radius))" \
  --variant "tau 0.1" "$base --tau 0.1" \
  --variant "tau 10" "$base --tau 10" \
  --variant "gains 0.5 0.3" "$base --early_gain 0.5 --middle_gain 0.3" \
  --variant "gains 3 2" "$base --early_gain 3 --middle_gain 2" \
  --variant "patience 0.05E" "$base --early_patience 0.05E --middle_patience 0.05E" \
  --variant "patience 1.0T" "$base --early_patience 1.0T --middle_patience 1.0T" \
  --variant "softmax weight" "$base --window_weight softmax" \
  --variant "public rule" "$base --window_rule public"
