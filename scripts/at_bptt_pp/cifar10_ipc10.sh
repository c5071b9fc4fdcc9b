#!/usr/bin/env bash
# AT-BPTT++ on CIFAR-10, 10 images per class. The command of the AT-BPTT++ README.
# Published with AT-BPTT++: 74.9 % top-1.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset cifar10 --num_per_class 10 --batch_per_class 10 --task_sampler_nc 10 --train_y \
  --num_train_eval 8 --world_size 1 --rank 0 --batch_size 5000 --ddtype at_bptt_pp --arch convnet --window \
  16 --totwindow 32 --window_radius 8 --selector_kl 1.0 --selector_ref_ema 0.05 --selector_tau_w 1.0 \
  --cr_rank 32 --cr_delta 0.2 --cr_period 20 --cr_oversample 4 --cr_power_iter 2 --inner_optim Adam \
  --inner_lr 0.001 --lr 0.001 --epochs 60000 --test_freq 25 --print_freq 10 --zca --syn_strategy \
  flip_rotate --real_strategy flip_rotate --comp_aug --comp_aug_real --fname \
  at_bptt_pp_cifar10_ipc10_table1 --seed 41 "$@"
