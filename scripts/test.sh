#!/usr/bin/env bash
# Lint, type-check and test. Installs what it needs on the first call. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
type -P chromium chromium-browser google-chrome google-chrome-stable > /dev/null ||
  echo "no Chromium here: the report page is not opened in a browser (on Debian: apt-get install chromium)" >&2
# Tests are many tiny problems: one thread each and one process per core beat one process with all cores.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest -n auto "$@"
