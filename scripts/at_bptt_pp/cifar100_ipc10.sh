#!/usr/bin/env bash
# AT-BPTT++ on CIFAR-100, 10 images per class. The command of the AT-BPTT++ README.
# Published with AT-BPTT++: 50.6 % top-1.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset cifar100 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 100 --train_y \
  --num_train_eval 8 --world_size 1 --rank 0 --batch_size 5000 --ddtype at_bptt_pp --arch convnet --window \
  100 --totwindow 300 --window_radius 30 --selector_kl 1.0 --selector_ref_ema 0.05 --selector_tau_w 1.0 \
  --cr_rank 32 --cr_delta 0.05 --cr_period 20 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --epochs \
  60000 --test_freq 25 --print_freq 10 --zca --syn_strategy flip_rotate --real_strategy flip_rotate \
  --fname at_bptt_pp_cifar100 --seed 41 "$@"
