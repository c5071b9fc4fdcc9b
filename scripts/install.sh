#!/usr/bin/env bash
# Make .venv and install a requirements file into it; does nothing where that was done before.
# Usage: bash scripts/install.sh [requirements.txt]    PYTHON=python3.12 picks another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=${1:-requirements.txt}
stamp=.venv/.installed-$(cat requirements.txt "$requirements" | cksum | cut -d' ' -f1)
[ -e "$stamp" ] && exit 0
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
echo "installing $requirements into .venv (about a minute)" >&2
.venv/bin/python -m pip install --progress-bar on -r "$requirements" >&2
touch "$stamp"
