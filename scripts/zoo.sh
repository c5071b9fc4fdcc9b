#!/usr/bin/env bash
# Make a set of the zoo again, by the commands of its card: bash scripts/zoo.sh NAME [--root DIR] [FLAGS OF THE LAST COMMAND]
# --root is the folder of the data (default: ./dataset). Flags that are given win, as --save_dir DIR, --seed 1, --resume.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
[ $# -gt 0 ] || { echo "zoo.sh: give the name of a set first; $PYTHON main.py zoo lists them" >&2; exit 2; }
name=$1 root=./dataset flags=(); shift
while [ $# -gt 0 ]; do
  case "$1" in
    --root) root=${2:?zoo.sh: --root: give a folder}; shift 2 ;;
    *) flags+=("$1"); shift ;;
  esac
done
text=$("$PYTHON" main.py zoo "$name" --commands)
mapfile -t commands <<< "$text"
for i in "${!commands[@]}"; do
  eval "words=(${commands[i]})" # of this package's own card, quoted for a shell
  for j in "${!words[@]}"; do
    if [ "${words[j]}" = ROOT ]; then words[j]=$root; fi
  done
  if [ "$i" = $((${#commands[@]} - 1)) ]; then words+=(${flags[@]+"${flags[@]}"}); fi
  "$PYTHON" "${words[@]:1}"
done
