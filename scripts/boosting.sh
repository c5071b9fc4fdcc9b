#!/usr/bin/env bash
# Boosting: the first images of a boosted set against sets distilled at their number, random subsets, random real images.
# Usage: see study.sh; also --block B, --beta B, --sizes N ..., --block_epochs E, --draws N. The same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
program=benchmarks/boosting_study.py
case "$dataset" in # of each of ten blocks
  digits) epochs=120 ;;
  mnist) epochs=15 ;;
  *) epochs=100 ;;
esac
inner+=(--truncation rat-bptt --batch_per_class 2) # the best policy of docs/method.md; more images to learn, more in a step
start_study boosting --block_epochs "$epochs"
