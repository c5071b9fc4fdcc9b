# Sourced by the scripts of studies, ablation.sh for one: the settings of a data set, and the start.
# Usage: [--dataset digits|mnist|...] [--ratio 2|5] [--out DIR] [--seeds 0 1 2] [--minutes M] [--jobs N] [-- FLAGS OF main.py]
# --ratio is T/W, on digits and the MNISTs.
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

dataset=digits ratio=2 out="" study=() extra=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dataset) dataset=$2; shift 2 ;;
    --ratio) ratio=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --) shift; extra=("$@"); break ;;
    *) study+=("$1"); shift ;;
  esac
done

case "$ratio" in
  2) window=15 radius=5 ;;
  5) window=6 radius=2 ;;
  *) echo "--ratio $ratio: give 2 or 5" >&2; exit 2 ;;
esac
inner=(--inner_optim Adam --inner_lr 0.005 --totwindow 30 --window "$window" --syn_strategy none --real_strategy none --num_train_eval 5 --baselines random)
case "$dataset" in
  digits) # the quickstart's, but for rate and length
    inner+=(--depth 1 --width 64 --batch_size 400 --lr 0.005 --epochs 240 --test_freq 20
      --eval_steps 30 60 120) ;;
  mnist | fashion-mnist) # grey 28x28 images: like digits with a deeper network, fewer and shorter passes over more data
    inner+=(--depth 3 --width 16 --batch_size 500 --limit_train 5000 --lr 0.01 --epochs 15
      --test_freq 5 --eval_steps 30 60 120) ;; # the rate is RaT-BPTT's best of 0.002, 0.005, 0.01, 0.02, 0.05 (docs/method.md)
  *) # the AT-BPTT README's CIFAR-10 settings; override after --
    inner=(--inner_optim Adam --inner_lr 0.001 --lr 0.001 --window 40 --totwindow 200 --batch_size 5000 --zca) radius=10 ;;
esac

start_study() { # NAME, then --variant NAME FLAGS ..., or whatever $program takes
  local name=$1; shift
  exec "$PYTHON" "${program:-benchmarks/study.py}" --out "${out:-save/$dataset/$name}" "$@" ${study[@]+"${study[@]}"} -- \
    --dataset "$dataset" "${inner[@]}" ${extra[@]+"${extra[@]}"}
}
