# Sourced by the benchmark scripts: from the repository's root, run main.py with the venv's python if there is one.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
distil() { exec "$PYTHON" main.py "$@"; }
