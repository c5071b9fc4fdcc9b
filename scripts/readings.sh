#!/usr/bin/env bash
# The readings of AT-BPTT that its sources allow against RaT-BPTT: which step of the window is drawn, how sharply, in each
# stage alone and in all three. All variants on the first seeds, the six best on five. Usage: see study.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/study.sh"
at="--truncation at-bptt -d $radius"
stay="--early_gain -1000" # every epoch is progress: the stage never ends
leave="--early_gain 1000 --early_patience 1" # none is: it ends with the second epoch
early=$stay middle="$leave --middle_gain -1000" late="$leave --middle_gain 1000 --middle_patience 1" free=""
variants=(--variant "rat-bptt" "--truncation rat-bptt")
for anchor in first centre last; do
  for stage in early late free; do
    for tau in 1 10; do
      variants+=(--variant "$anchor, tau $tau, $stage" "$at --truncation_anchor $anchor --tau $tau ${!stage}")
    done
  done
  variants+=(--variant "$anchor, middle" "$at --truncation_anchor $anchor $middle")
  variants+=(--variant "$anchor, tau 1, free, plateau of means" "$at --truncation_anchor $anchor --plateau mean")
done
variants+=(--variant "first, tau 1, late, mirrored" "$at --late mirror $late")
variants+=(--variant "first, tau 1, late, standard" "$at --norm_scale standard $late")
start_study "readings_$ratio" --seeds 0 1 --finalists 6 --final_seeds 0 1 2 3 4 "${variants[@]}"
