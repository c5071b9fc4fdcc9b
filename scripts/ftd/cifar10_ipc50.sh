#!/usr/bin/env bash
# FTD on CIFAR-10, 50 images per class: 100 experts, then matching, by Table 7 of its repository.
# Flags for both go after the script's name, those of main.py ftd after "--"; EXPERTS="--num_experts 2" in the
# environment is for main.py buffer. --dry_run tells memory, disk and time of both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/both.sh"
both "--dataset=CIFAR10 --model=ConvNet --zca --buffer_path=buffers/alpha_1" \
  "--num_experts=100 --train_epochs=50 --rho=0.01 --alpha=1" \
  "--ipc=50 --syn_steps=30 --expert_epochs=2 --max_start_epoch=40 --lr_img=1000 \
  --lr_lr=1e-05 --lr_teacher=0.01 --ema_decay=0.999 --Iteration=5000" "$@"
