#!/usr/bin/env bash
# Continual learning: classes in tasks, and a memory of distilled images against as many real ones. Usage: see study.sh;
# also --classes N (of a task), --sizes M ... (images per class in the memory), --steps N. The same command continues.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
program=benchmarks/continual.py
case "$dataset" in # batches with which five tasks take as many outer steps together as all classes at once
  digits) inner+=(--batch_size 240 --epochs 150) ;;
  mnist) inner+=(--batch_size 500 --epochs 60) ;;
esac
# Two classes are told apart early on: the set is the one at the end, not the first that reaches the best accuracy.
inner+=(--truncation rat-bptt --batch_per_class 2 --test_freq 1000000 --baselines)
start_study continual
