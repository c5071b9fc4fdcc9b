#!/usr/bin/env bash
# Score a distilled set with the package ddranking 0.2.0, which is installed beside .venv on the first call (it needs an
# older numpy). Usage: bash scripts/ddranking_score.sh RUN [--ddranking_dataset NAME] [FLAGS OF benchmarks/ddranking_score.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] && [ -e "$1" ] || { echo "ddranking_score: give a run's folder or a distilled file first" >&2; exit 2; }
run=$1; shift
name=()
if [ "${1:-}" = --ddranking_dataset ]; then name=(--ddranking_dataset "$2"); shift 2; fi
bash scripts/install.sh
venv=${DDRANKING_VENV:-.venv-ddranking}
if [ ! -e "$venv/.installed" ]; then
  .venv/bin/python -m venv "$venv"
  # What is in .venv serves here too; ddranking's older numpy and scipy go before it.
  .venv/bin/python -c 'import site; print(site.getsitepackages()[0])' > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/base.pth"
  "$venv/bin/python" -m pip install --progress-bar on ddranking==0.2.0 >&2
  touch "$venv/.installed"
fi
folder=$([ -d "$run" ] && echo "$run" || dirname "$run")/exports/ddranking
[ -d "$folder" ] || .venv/bin/python main.py export "$run" --to ddranking --output "$folder" ${name[@]+"${name[@]}"} >&2
exec "$venv/bin/python" benchmarks/ddranking_score.py "$folder" "$@"
