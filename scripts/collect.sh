#!/usr/bin/env bash
# Copy what the report needs of finished runs, small enough to commit: options, games, summary, and the curves compressed.
#   scripts/collect.sh results/study runs/NAME...
# The same runs give the same bytes. Nothing is deleted, and only files of the same run are replaced. A run that is not
# finished is named and left out.
set -euo pipefail
[[ " $* " != *" --help "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
(($# > 1)) || { sed -n '2,/^set/s/^# //p' "$0" >&2 && exit 2; }

[[ ! -e $1/config.json ]] || { echo "error: $1 is a run folder: name a folder for the copies first" >&2 && exit 2; }

files=(config.json eval.csv curves.csv.gz summary.json) # in this order: a copy with a summary is whole
runs=()
for run in "${@:2}"; do
  [[ ! -f $run ]] || continue # such as the NAME.log of a sweep, given by runs/*
  [[ -e $run/config.json ]] || { echo "error: no run folder (it has no config.json): $run" >&2 && exit 2; }
  [[ ! -e $run/summary.json || -e $run/curves.csv || -e $run/curves.csv.gz ]] ||
    { echo "error: a finished run without its curves.csv: $run" >&2 && exit 2; }
  [[ ! -e $run/summary.json || -e $run/eval.csv ]] || grep -q '"eval_episodes": 0\b' "$run/config.json" ||
    { echo "error: a finished run without its eval.csv: $run" >&2 && exit 2; }
  runs+=("$run")
done
((${#runs[@]} > 0)) || { echo "error: no run folder was named" >&2 && exit 2; }
for run in "${runs[@]}"; do
  if [[ ! -e $run/summary.json ]]; then
    echo "not finished: $run" >&2
    continue
  fi
  copy=$1/$(basename "$(realpath -s "$run")")
  [[ ! $run -ef $copy ]] || { echo "error: $copy is the run itself" >&2 && exit 2; }
  for file in "${files[@]}"; do
    if [[ -e $copy/$file ]] && ! cmp -s "$run/config.json" "$copy/config.json"; then
      echo "error: $copy already holds another run" >&2
      exit 2
    fi
  done
  mkdir -p "$copy"
  for file in "${files[@]}"; do
    if [[ $file == curves.csv.gz && -e $run/curves.csv ]]; then # a copy that was collected before has only curves.csv.gz
      gzip -9nc "$run/curves.csv" >"$copy/$file.part"
    elif [[ $file == eval.csv && ! -e $run/eval.csv ]]; then # with --eval-episodes 0
      continue
    else
      cp "$run/$file" "$copy/$file.part"
    fi
    mv "$copy/$file.part" "$copy/$file"
  done
done
