#!/usr/bin/env bash
# Within 10 minutes on one GPU: engines side by side, then a timed distillation of CIFAR-10 (10 images per class, the
# AT-BPTT README's settings) with our default and with the reference engine, each for half of the time that is left.
# Writes JSON and Markdown to OUT_DIR.
# Usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS OF main.py]]
#   CIFAR_ROOT holds cifar-10-batches-py; or train/ and test/ class folders, then give --dataset imagefolder as a flag.
#   SECONDS_IN_ALL=120 bash scripts/gpu_bench.sh ... for less time; FLAGS may shrink the distillation to a CPU's size.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS]]" >&2; exit 2; }
out=$(realpath -m "$1"); root=$(realpath -m "${2:-dataset}"); shift; [ $# -eq 0 ] || shift
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
total=${SECONDS_IN_ALL:-570}
began=$SECONDS
left() { echo $((total - (SECONDS - began))); }
# What its time limit ends has written what it had; any other failure is one.
within() {
  local code=0
  timeout --signal TERM --kill-after 20 "$@" || code=$?
  case $code in 0 | 124 | 137) ;; *) return "$code" ;; esac
}
compare() {
  local limit=$1
  shift
  within "$limit" "$PYTHON" benchmarks/metagrad.py --out "$out" --repeats 3 "$@"
}
mkdir -p "$out"
echo "engines side by side: 100 images, window 40" >&2
compare $((total / 5)) --cases 100,40
echo "engines side by side: the others" >&2
compare $((total / 4)) --name metagrad_sweep --images 10 100 500 --windows 20 60 100 --case_seconds 10 \
  --seconds $((total / 5))
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "compiled kernels inside of graphs" >&2
  compare $((total / 5)) --name metagrad_compiled --cases 100,40 --variants ancestor "ancestor, tf32" \
    "replay, graphs" "replay, graphs, compile" "replay, graphs, compile, tf32"
fi
for engine in auto higher; do
  echo "distilling with --engine $engine" >&2
  run="$out/run_$engine"
  limit=$(left)
  [ "$engine" = higher ] || limit=$((limit / 2))
  within "$limit" "$PYTHON" main.py --dataset cifar10 --root "$root" --zca \
    --num_per_class 10 --batch_per_class 10 --batch_size 5000 --ddtype curriculum --cctype 2 -d 10 --window 40 \
    --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --arch convnet --test_freq 2 --eval_steps 300 \
    --num_train_eval 2 --print_freq 1 --epochs 60000 --engine "$engine" --save_dir "$run" "$@"
  cp "$run/metrics.jsonl" "$out/distil_$engine.jsonl"
done
"$PYTHON" benchmarks/timed_distillation.py "$out"
