#!/usr/bin/env bash
# RaT-BPTT on Tiny-ImageNet, 10 images per class, window fixed at the end: the command of its README.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"
distil --dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y \
  --num_train_eval 8 --world_size 1 --rank 0 --batch_size 2000 --ddtype curriculum --cctype 0 --epoch 60000 \
  --test_freq 10 --print_freq 10 --arch convnet4 --window 90 --minwindow 0 --totwindow 270 \
  --inner_optim Adam --inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate "$@"
