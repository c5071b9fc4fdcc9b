#!/usr/bin/env bash
# RaT-BPTT against the best reading of AT-BPTT, AT-BPTT++'s policy and this project's own policies: each at the outer rate
# that serves it best, paired seeds, equal steps and equal time. Usage: see study.sh; also --tune_seeds, benchmarks/duel.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
program=benchmarks/duel.py
case "$dataset" in
  digits) inner+=(--epochs 120 --test_freq 15 --num_train_eval 3) rates=(0.005 0.01 0.02 0.05) ;;
  mnist | fashion-mnist) inner+=(--test_freq 2 --num_train_eval 3) rates=(0.005 0.01 0.02) ;;
  *) rates=(0.0005 0.001 0.002) ;;
esac
inner+=(--baselines)
settings=()
for rate in "${rates[@]}"; do settings+=(--setting "--lr $rate"); done
start_study duel "${settings[@]}" \
  --method "rat-bptt" "--truncation rat-bptt" \
  --method "rat-bptt, every step, from 1" "--truncation rat-bptt --complete_random --minwindow 1" \
  --method "rat-bptt, robust clip" "--truncation rat-bptt --clip_norms applied" \
  --method "rat-is" "--truncation rat-is" \
  --method "rat-is, robust clip" "--truncation rat-is --clip_norms applied" \
  --method "rat-pool" "--truncation rat-pool" \
  --method "at-bptt, tau 10" "--truncation at-bptt -d $radius --tau 10" \
  --method "at-bptt, tau 10, robust clip" "--truncation at-bptt -d $radius --tau 10 --clip_norms applied" \
  --method "early positions, root" "--truncation at-bptt-positions --early_gain -1000 --inner_eps_root 1e-6" \
  --method "WTPO" "--truncation at-bptt-pp --window_radius $radius --disable_cr_lrha --no_normalize_syn"
