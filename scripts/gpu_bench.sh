#!/usr/bin/env bash
# Within 10 minutes on one GPU: engines side by side, then a timed distillation of CIFAR-10 (10 images per class, the
# AT-BPTT README's settings) with each engine for the time that is left. Writes JSON to OUT_DIR.
# Usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS OF main.py]]
#   CIFAR_ROOT holds cifar-10-batches-py; or train/ and test/ class folders, then give --dataset imagefolder as a flag.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS]]" >&2; exit 2; }
out=$(realpath -m "$1"); root=$(realpath -m "${2:-dataset}"); shift; [ $# -eq 0 ] || shift
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
began=$SECONDS
mkdir -p "$out"
"$PYTHON" benchmarks/metagrad.py --out "$out" --images 10 100 500 --windows 20 60 100 --repeats 3 --minutes 4
left=$((570 - (SECONDS - began)))
for engine in replay higher; do
  run="$out/distil_$engine"
  timeout --signal TERM --kill-after 20 $((left / 2)) "$PYTHON" main.py --dataset cifar10 --root "$root" --zca \
    --num_per_class 10 --batch_per_class 10 --batch_size 5000 --ddtype curriculum --cctype 2 -d 10 --window 40 \
    --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --arch convnet --test_freq 2 --eval_steps 300 \
    --num_train_eval 2 --print_freq 1 --epochs 60000 --engine "$engine" --save_dir "$run" "$@" || [ $? -eq 143 ] || [ $? -eq 124 ]
  cp "$run/metrics.jsonl" "$out/distil_$engine.jsonl"
done
