#!/usr/bin/env bash
# What the parts of AT-BPTT++ give over RaT-BPTT, each alone: its selector (WTPO), its kept factors (CR-LRHA), and what its
# published commands change besides: normalised images, composed augmentation, learnt labels; and AT-BPTT.
# Usage: see study.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
rat="--truncation rat-bptt" strategy=flip_rotate own=()
case "$dataset" in
  digits | mnist) strategy=rotate_scale ;; # a flipped digit is another
  *) # the CIFAR-10 command's trajectory for all, and RaT-BPTT with its own
    inner+=(--window 16 --totwindow 32) radius=8 own=(--variant "rat-bptt, W 60, T 200" "$rat --window 60 --totwindow 200") ;;
esac
inner+=(--syn_strategy "$strategy" --real_strategy "$strategy")
pp="--truncation at-bptt-pp --window_radius $radius" rest="--train_y --normalize_syn --comp_aug --comp_aug_real"
start_study ablation_pp \
  --variant "rat-bptt" "$rat" ${own[@]+"${own[@]}"} \
  --variant "at-bptt" "--truncation at-bptt -d $radius" \
  --variant "WTPO" "$pp --disable_cr_lrha --no_normalize_syn" \
  --variant "CR-LRHA" "$rat --cr_lrha" \
  --variant "WTPO and CR-LRHA" "$pp --no_normalize_syn" \
  --variant "WTPO and CR-LRHA as in the public code" "$pp --no_normalize_syn --cr_mode gradient" \
  --variant "normalised images" "$rat --normalize_syn" \
  --variant "composed augmentation" "$rat --comp_aug --comp_aug_real" \
  --variant "learnt labels" "$rat --train_y" \
  --variant "rat-bptt with all the rest" "$rat $rest" \
  --variant "at-bptt-pp with all the rest" "$pp $rest"
