#!/usr/bin/env bash
# Draw the figures of README and docs from a finished run: bash scripts/figures.sh save/digits/quickstart [--out Figure]
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
exec "$PYTHON" benchmarks/figures.py "${@:-save/digits/quickstart}"
