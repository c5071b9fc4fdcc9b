#!/usr/bin/env bash
# AT-BPTT on ImageNet-1K at 64 pixels, 1 image per class. Ours: the settings of RaT-BPTT's ImageNet command with AT-BPTT's policy; no command was published.
# Published with AT-BPTT: 12.7 % top-1.
# Extra flags go to main.py: a reduced run is one line, for example --epochs 2 --batch_size 500.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
distil --dataset imagenet --train_y --num_per_class 1 --batch_per_class 1 --task_sampler_nc 50 \
  --num_train_eval 8 --batch_size 1500 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 1 \
  --print_freq 10 --arch convnet4 --window 80 --minwindow 0 --totwindow 280 --inner_optim Adam \
  --inner_lr 0.001 --lr 0.0003 --syn_strategy flip_rotate --real_strategy flip_rotate --workers 4 -d 20 \
  --mp_distributed "$@"
