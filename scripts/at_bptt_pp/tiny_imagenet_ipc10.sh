#!/usr/bin/env bash
# AT-BPTT++ on Tiny-ImageNet, 10 images per class. The command of the AT-BPTT++ README.
# Published with AT-BPTT++: 34.3 % top-1.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y \
  --num_train_eval 8 --world_size 1 --rank 0 --batch_size 1000 --ddtype at_bptt_pp --arch convnet4 \
  --window 100 --totwindow 300 --window_radius 40 --selector_kl 1.0 --selector_ref_ema 0.05 \
  --selector_tau_w 1.0 --cr_rank 32 --cr_delta 0.05 --cr_period 20 --inner_optim Adam --inner_lr 0.001 \
  --lr 0.0003 --epochs 60000 --test_freq 10 --print_freq 10 --syn_strategy flip_rotate --real_strategy \
  flip_rotate --fname at_bptt_pp_tiny --seed 41 "$@"
