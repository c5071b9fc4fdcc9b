#!/usr/bin/env bash
# Install, distil the embedded digits to one image per class, and show the result: a few minutes on two cores.
# Run again, it shows the finished result; an interrupted run continues. Extra flags go to main.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
exec .venv/bin/python main.py \
  --dataset digits --num_per_class 1 --depth 1 --width 64 \
  --inner_optim Adam --inner_lr 0.005 --syn_strategy none --real_strategy none \
  --truncation auto --window 15 --totwindow 30 \
  --batch_size 400 --lr 0.02 --iterate_average 9 --epochs 150 --test_freq 25 \
  --eval_steps 30 60 120 240 --num_train_eval 10 --baselines random full \
  --save_dir save/digits/quickstart --resume "$@"
