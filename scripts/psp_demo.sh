#!/usr/bin/env bash
# Patch-wise semantic preservation at 128 pixels, on crops of ten photographs that scikit-learn and scikit-image ship.
# A demonstration that it runs, not a benchmark: about two minutes on two cores. Extra flags go to main.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh requirements-dev.txt
.venv/bin/python scripts/photo_crops.py dataset/photographs
exec .venv/bin/python main.py \
  --dataset imagefolder --root dataset/photographs --im_size 128 --arch convnet5 --width 16 --num_per_class 1 \
  --psp_patches 4 --inner_optim Adam --inner_lr 0.003 --syn_strategy flip --real_strategy flip \
  --ddtype curriculum --cctype 2 --window 4 --totwindow 10 --batch_size 40 --lr 0.02 --epochs 4 --test_freq 2 \
  --eval_steps 10 20 40 --num_train_eval 3 --baselines random \
  --save_dir save/photographs/psp_demo --resume "$@"
