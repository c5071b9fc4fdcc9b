#!/usr/bin/env bash
# RaT-BPTT on CIFAR-100, 10 images per class, soft labels: the command of its README.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset cifar100 --num_per_class 10 --batch_per_class 1 --train_y --task_sampler_nc 100 \
  --num_train_eval 8 --world_size 1 --rank 0 --batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 \
  --test_freq 25 --print_freq 10 --arch convnet --window 100 --minwindow 0 --totwindow 300 \
  --inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca --syn_strategy flip_rotate \
  --real_strategy flip_rotate --fname train_y "$@"
