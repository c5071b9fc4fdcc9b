# Sourced by the scripts of this folder: experts, then matching.
source "$(dirname "${BASH_SOURCE[0]}")/../python.sh"

# both "DATA AND NETWORK" "EXPERTS" "MATCHING" [FLAGS OF BOTH ...] [-- FLAGS OF main.py ftd ...]
# EXPERTS="FLAGS" in the environment adds flags of main.py buffer. Experts that are there are not trained again.
both() {
  local data=$1 experts=$2 matching=$3 shared=()
  shift 3
  while [ $# -gt 0 ] && [ "$1" != -- ]; do shared+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  # shellcheck disable=SC2086  # words
  "$PYTHON" main.py buffer $data $experts ${shared[@]+"${shared[@]}"} ${EXPERTS:-}
  # shellcheck disable=SC2086
  "$PYTHON" main.py ftd $data $matching ${shared[@]+"${shared[@]}"} "$@"
}
