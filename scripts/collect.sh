#!/usr/bin/env bash
# Copy what the report needs of finished runs, small enough to commit: options, games, summary, and the curves compressed.
#   scripts/collect.sh results/study runs/NAME...
# The same runs give the same bytes. A run that is not finished is named and left out; another run of the name is not replaced.
set -euo pipefail
(($# > 1)) || { sed -n '2,4s/^# //p' "$0" >&2 && exit 2; }
to=$1
for run in "${@:2}"; do
  [[ -d $run ]] || { echo "error: no such run folder: $run" >&2 && exit 2; }
  if [[ ! -e $run/summary.json ]]; then
    echo "not finished: $run" >&2
    continue
  fi
  kept=$to/$(basename "$run") part=$to/.$(basename "$run").part
  [[ ! $run -ef $kept ]] || { echo "error: $kept is the run itself" >&2 && exit 2; }
  if [[ -e $kept ]] && ! cmp -s "$run/config.json" "$kept/config.json"; then
    echo "error: $kept is another run" >&2
    exit 2
  fi
  rm -rf "$part" && mkdir -p "$part" # whole or not at all
  cp "$run/config.json" "$run/summary.json" "$run/curves.csv" "$part"
  [[ ! -e $run/eval.csv ]] || cp "$run/eval.csv" "$part" # none with --eval-episodes 0
  gzip -9n "$part/curves.csv"
  rm -rf "$kept" && mv "$part" "$kept"
done
