#!/usr/bin/env bash
# AT-BPTT on CIFAR-10, 50 images per class. Ours: the README's command for 10 images per class with this number instead; none was published.
# Published with AT-BPTT: 76.2 % top-1.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
distil --dataset cifar10 --num_per_class 50 --batch_per_class 10 --num_train_eval 8 --world_size 1 --rank 0 \
  --batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 25 --print_freq 10 \
  --arch convnet --window 40 --minwindow 0 --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 \
  --zca --syn_strategy flip_rotate --real_strategy flip_rotate --fname 60_200 --seed 0 -d 10 \
  --mp_distributed "$@"
