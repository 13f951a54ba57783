#!/usr/bin/env bash
# Lint, shell checks and all tests, in a .venv that is made if there is none. Needs python3 (3.11 or newer) with venv; no GPU.
#   scripts/test.sh                 everything
#   scripts/test.sh -k mask -x      arguments go to pytest
set -euo pipefail
[[ " $* " != *" --help "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
cd "$(dirname "$0")/.."

python=.venv/bin/python
shopt -s nullglob
shell_files=(scripts/*.sh tests/*.sh checks/*.sh .ci/run)

if [[ $(id -u) == 0 ]] && ! { command -v slurmctld && command -v strace; } >/dev/null && command -v apt-get >/dev/null; then
  echo "installing Slurm and strace, for tests that are skipped without them"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm strace; } >/dev/null || true
fi
[[ -x .venv/bin/pip ]] || python3 -m venv .venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "error: .venv is broken or older than Python 3.11: delete it, and start again with a python3 of 3.11 or newer" >&2 && exit 2; }
unset PYTHONDONTWRITEBYTECODE # a module is compiled when it is first imported: faster than to compile all of them at once
"$python" -m pip install --quiet --no-compile --disable-pip-version-check -r requirements-dev.txt

"$python" -m ruff check
"$python" -m ruff format --check
for file in "${shell_files[@]}"; do bash -n "$file"; done
.venv/bin/shellcheck "${shell_files[@]}"
"$python" -m checks.docs
# one process per core, with one thread each, and two more, since some tests wait
OMP_NUM_THREADS=1 "$python" -m pytest --numprocesses="$(($(nproc) + 2))" --dist=worksteal --durations=10 "$@"
