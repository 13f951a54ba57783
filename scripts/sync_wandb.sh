#!/usr/bin/env bash
# Upload offline W&B runs. Files that a kill has torn are mended first. A run that still trains is named and left alone.
#   scripts/sync_wandb.sh                  all runs in runs/
#   scripts/sync_wandb.sh runs/NAME...     these, and all in folders of runs; a report's folder too
# Needs a key (`wandb login` or WANDB_API_KEY). What is uploaded is marked (.synced) and not sent again. Exit code 1: some runs
# could not be uploaded; they are named. Environment variables: PYTHON=.venv/bin/python and those of W&B.
set -euo pipefail
[[ " $* " != *" --help "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
scripts=$(dirname "$0")
python=${PYTHON:-$scripts/../.venv/bin/python}
command -v "$python" >/dev/null || { echo "error: PYTHON must be a Python with requirements.txt, got $python" >&2 && exit 2; }
shopt -s nullglob
(($# > 0)) || set -- "$scripts"/../runs
for folder in "$@"; do
  [[ -e $folder ]] || { echo "error: no such folder: $folder" >&2 && exit 2; }
done
mapfile -t folders < <(find -L "$@" -type d -name wandb -prune -printf '%h\n' | sort -u) # of runs and reports, at any depth

# Half a minute of trying is enough to say that there is no server; by default it takes many minutes.
export WANDB_X_GRAPHQL_RETRY_MAX=${WANDB_X_GRAPHQL_RETRY_MAX:-4} WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS=5
export WANDB_SILENT=false WANDB_SHOW_ERRORS=true WANDB_SHOW_WARNINGS=true # what it prints tells whether it failed
failed=0 found=0
for folder in "${folders[@]}"; do
  if [[ -e $folder/.lock ]] && ! flock -n "$folder/.lock" true; then # what is uploaded now would be all that is ever sent
    echo "still running: $folder" >&2
    found=1
    continue
  fi
  for run in "$folder"/wandb/offline-run-*/; do
    found=1
    files=("$run"*.wandb)
    ((${#files[@]} > 0)) && [[ ! -e ${files[0]}.synced ]] || continue
    "$python" "$scripts/mend_wandb.py" "${files[@]}"
    (($(stat -c %s "${files[0]}") > 7)) || continue # killed at its start: a header, and nothing to send
    # `wandb sync` exits 0 whatever happens, but it prints what went wrong. That the model is there already is no failure
    code=0
    output=$("$python" -m wandb sync "$run" 2>&1) || code=$?
    wrong=$(grep -E '^wandb: (ERROR|WARNING) ' <<<"$output" | grep -v ' already exists with the same content') || true
    if [[ $code == 0 && -e ${files[0]}.synced && -z $wrong ]]; then
      echo "synced $run"
    else
      echo "$output" >&2
      rm -f "${files[0]}.synced" # the client marks what it failed to send, too
      echo "error: not synced: $run" >&2
      failed=1
    fi
  done
done
((found)) || echo "no offline W&B runs in: $*"
exit "$failed"
