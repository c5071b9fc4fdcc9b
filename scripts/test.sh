#!/usr/bin/env bash
# Lint, type-check and test. Installs what it needs on the first call. Extra arguments go to pytest.
# SKIP_NOTHING=1 fails every test that would be skipped because this machine lacks something (a browser, real images).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The report page is opened in Chromium. "type" fails if one name is missing, so what counts is whether it found any.
has_browser() { [ -n "$(type -P chromium chromium-browser google-chrome google-chrome-stable)" ]; }
if ! has_browser && [ "$(id -u)" = 0 ] && [ -n "$(type -P apt-get)" ]; then
  echo "installing Chromium, for the tests of the report page (about a minute)" >&2
  export DEBIAN_FRONTEND=noninteractive
  { apt-get -q update && apt-get -q install -y --no-install-recommends chromium; } >&2 || true
fi
has_browser ||
  echo "no Chromium here: the report page is not opened in a browser (on Debian, as root: apt-get install chromium)" >&2
bash scripts/install.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Types are checked beside the tests, and told after them.
types=$(mktemp)
.venv/bin/mypy >"$types" 2>&1 &
checker=$! failed=0
# Tests are many tiny problems: one thread each and one process per core beat one process with all cores. Whoever has none
# left takes some of the other's.
export OMP_NUM_THREADS=1
# They are about the CPU; those of tests/gpu follow where there is a device.
CUDA_VISIBLE_DEVICES="" .venv/bin/python -m pytest -n auto --dist worksteal --ignore tests/gpu "$@" ||
  failed=$?
if [ $# = 0 ] && .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  .venv/bin/python -m pytest -n 4 tests/gpu || failed=$?
fi
wait "$checker" || failed=1
cat "$types"
rm "$types"
exit "$failed"
