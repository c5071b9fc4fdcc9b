#!/usr/bin/env bash
# Within 10 minutes on one GPU: engines side by side, trajectory matching beside the originals' way, then a timed
# distillation of CIFAR-10 (10 images per class, the AT-BPTT README's settings) with our default and with the reference
# engine, each for half of the time that is left, and in the rest the engines for other windows and batches.
# Writes JSON and Markdown to OUT_DIR.
# Usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS OF main.py]]
#   CIFAR_ROOT holds cifar-10-batches-py; or train/ and test/ class folders, then give --dataset imagefolder as a flag.
#   SECONDS_IN_ALL=120 bash scripts/gpu_bench.sh ... for less time, or for more. What it ends is told on stderr; an
#   engine that it ends before its first metrics has "nothing" in the last table.
#   COMPARE_FLAGS="--cases 10,2 ..." (of benchmarks/metagrad.py) and FLAGS shrink both parts, to a CPU's size for instance.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash scripts/gpu_bench.sh OUT_DIR [CIFAR_ROOT [FLAGS]]" >&2; exit 2; }
out=$(realpath -m "$1"); root=$(realpath -m "${2:-dataset}"); shift; [ $# -eq 0 ] || shift
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
total=${SECONDS_IN_ALL:-570}
began=$SECONDS
left() { echo $((total - (SECONDS - began))); }
say() { echo "gpu_bench: $*" >&2; }
# within SECONDS COMMAND: what its time limit ends has written what it had; any other failure is one.
within() {
  local limit=$1 code=0
  shift
  # timeout itself takes 0 for "no limit".
  if [ "$limit" -lt 1 ]; then say "no time is left for it"; return; fi
  timeout --signal TERM --kill-after 20 "$limit" "$@" || code=$?
  case $code in
    0) ;;
    124 | 137) say "cut short with code $code: its limit is $limit s of SECONDS_IN_ALL=$total" ;;
    *) return "$code" ;;
  esac
}
compare() {
  local limit=$1
  shift
  # shellcheck disable=SC2086  # words
  within "$limit" "$PYTHON" benchmarks/metagrad.py --out "$out" --repeats 3 "$@" ${COMPARE_FLAGS:-}
}
mkdir -p "$out"
say "engines side by side: 100 images, window 40"
compare $((total / 5)) --cases 100,40 --seconds $((total / 8))
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "compiled kernels inside of graphs"
  compare $((total / 4)) --name metagrad_compiled --cases 100,40 --seconds $((total / 8)) --no_memory --variants \
    ancestor "ancestor, tf32" "replay, graphs" "replay, graphs, tf32" "replay, graphs, compile, tf32"
  say "trajectory matching"
  within $((total / 6)) "$PYTHON" benchmarks/matching.py --out "$out" --steps 20 80 --device cuda
fi
for engine in auto higher; do
  say "distilling with --engine $engine"
  run="$out/run_$engine"
  limit=$(($(left) / 2))
  within "$limit" "$PYTHON" main.py --dataset cifar10 --root "$root" --zca \
    --num_per_class 10 --batch_per_class 10 --batch_size 5000 --ddtype curriculum --cctype 2 -d 10 --window 40 \
    --totwindow 200 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --arch convnet --test_freq 2 --eval_steps 300 \
    --num_train_eval 2 --print_freq 1 --epochs 60000 --engine "$engine" --save_dir "$run" "$@"
  if [ -s "$run/metrics.jsonl" ]; then
    cp "$run/metrics.jsonl" "$out/distil_$engine.jsonl"
  else
    say "--engine $engine gave nothing: cut short before its first metrics; raise SECONDS_IN_ALL"
    : > "$out/distil_$engine.jsonl"
  fi
done
"$PYTHON" benchmarks/timed_distillation.py "$out"
say "engines side by side: the others"
compare "$(left)" --name metagrad_sweep --images 10 100 500 --windows 20 60 100 --case_seconds 10 \
  --seconds $(($(left) / 2))
