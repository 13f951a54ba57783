#!/usr/bin/env bash
# Install, then lint, format, shell checks and all tests. Arguments go to pytest.
#   scripts/test.sh
#   scripts/test.sh -k buffer
set -euo pipefail
cd "$(dirname "$0")/.."

[[ -x .venv/bin/python ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
for file in scripts/*.sh .ci/run; do bash -n "$file"; done
.venv/bin/shellcheck scripts/*.sh .ci/run
# one process per core and one thread in each: faster than one after the other
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --numprocesses "$(nproc)" --dist loadfile --durations 10 "$@"
