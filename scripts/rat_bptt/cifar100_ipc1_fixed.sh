#!/usr/bin/env bash
# RaT-BPTT on CIFAR-100, 1 image per class, window fixed at the end: the command of its README.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset cifar100 --num_per_class 1 --batch_per_class 1 --task_sampler_nc 100 --num_train_eval 8 \
  --train_y --world_size 1 --rank 0 --batch_size 5000 --ddtype curriculum --cctype 0 --epoch 60000 \
  --test_freq 50 --print_freq 10 --arch convnet --window 90 --minwindow 0 --totwindow 130 --inner_optim Adam \
  --inner_lr 0.001 --lr 0.0003 --zca --syn_strategy flip_rotate --real_strategy flip_rotate "$@"
