#!/usr/bin/env bash
# FTD on CIFAR-10, 10 images per class: 100 experts, then matching, by Table 7 of its repository.
# Flags for both go after the script's name, those of main.py ftd after "--"; EXPERTS="--num_experts 2" in the
# environment is for main.py buffer. --dry_run tells memory, disk and time of both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/both.sh"
both "--dataset=CIFAR10 --model=ConvNet --zca --buffer_path=buffers/alpha_0.3" \
  "--num_experts=100 --train_epochs=50 --rho=0.01 --alpha=0.3" \
  "--ipc=10 --syn_steps=30 --expert_epochs=2 --max_start_epoch=20 --lr_img=100 \
  --lr_lr=1e-05 --lr_teacher=0.001 --ema_decay=0.9995 --Iteration=5000" "$@"
