#!/usr/bin/env bash
# What sweep_dqn.sh and sweep_ppo.sh share: the list of runs, and xargs that works through it. See there for how to use it.
#   scripts/sweep.sh ALGORITHM "RATE..." [option of every run]...
set -euo pipefail
cd "$(dirname "$0")/.."

algorithm=$1 script=$1_atari_prune
export RATES=$2 SEEDS=${SEEDS:-1} GAMES=${GAMES:-SpaceInvadersNoFrameskip-v4} RUNS_DIR=${RUNS_DIR:-runs}
shift 2
read -ra rates <<<"$RATES"
read -ra seeds <<<"$SEEDS"
read -ra games <<<"$GAMES"
python=${PYTHON:-.venv/bin/python}

# Checks the matrix and the options, says what the sweep costs, and finds what this machine can do side by side.
plan=$("$python" scripts/plan.py "$algorithm" "$@")
IFS=$'\t' read -r jobs threads gpus steps cut dense_suffix arm_suffix <<<"$plan"
export gpus

# A run: its name, its dense twin's, its first and last step, its command.
run() {
  local game=$1 seed=$2 arm=$3 parent=$4 suffix=$5 first=0
  local name="${game//[^A-Za-z0-9_.-]/-}__${script}__${arm}__s${seed}${suffix}"
  [[ $parent == - ]] || first=$cut
  printf '%s\t%s\t%s\t%s\t' "$name" "$parent" "$first" "$steps"
  printf '%q ' "$python" "$script.py" --env-id "$game" --seed "$seed" "${@:6}" --num-threads "$threads" \
    --runs-dir "$RUNS_DIR" --run-name "$name" "${options[@]}"
  echo
}
dense() { run "$1" "$2" none - "$dense_suffix" --prune-type none; }
forked() {
  local twin="${1//[^A-Za-z0-9_.-]/-}__${script}__none__s$2${dense_suffix}" type rate
  local fork=(--fork-from "$RUNS_DIR/$twin")
  [[ ${AA:-0} == 0 ]] || run "$1" "$2" none-fork1 "$twin" "$dense_suffix" --prune-type none --fork-seed 1 "${fork[@]}"
  for rate in "${rates[@]}"; do
    for type in l1 random; do
      run "$1" "$2" "$type-$rate" "$twin" "$arm_suffix" --prune-type "$type" --prune-rate "$rate" "${fork[@]}"
    done
  done
}

# Seeds in order, but the dense run of the next before the arms of this one: no arm then waits for a prune point.
options=("$@") pairs=()
for seed in "${seeds[@]}"; do for game in "${games[@]}"; do pairs+=("$game $seed"); done; done
list=$(
  for i in "${!pairs[@]}"; do
    read -ra this <<<"${pairs[i]}"
    read -ra next <<<"${pairs[i + 1]:-}"
    ((i > 0)) || dense "${this[@]}"
    ((${#next[@]} == 0)) || dense "${next[@]}"
    forked "${this[@]}"
  done
)
if [[ ${DRY_RUN:-0} == 1 ]]; then
  cut -f5 <<<"$list"
  exit
fi

mkdir -p "$RUNS_DIR"
failures=$(mktemp -d)
export failures
trap 'rm -rf "$failures"' EXIT

# One line of the list. It says what came of it and always succeeds: xargs would stop at a child that a signal ended.
# shellcheck disable=SC2329
work() {
  local name parent command code stop=
  trap exit TERM INT
  IFS=$'\t' read -r name parent _ _ command <<<"$1"
  until [[ $parent == - || -e $RUNS_DIR/$parent/prune_point.pt || -e $RUNS_DIR/$name/checkpoint.pt ||
    -e $RUNS_DIR/$name/summary.json ]]; do
    [[ ! -e $failures/$parent ]] || { touch "$failures/$name" && echo "failed $name (no prune point of its twin)" && return; }
    if [[ -e $RUNS_DIR/$parent/summary.json ]]; then
      touch "$failures/$name"
      echo "failed $name (delete $RUNS_DIR/$parent, which is finished and has no prune point for its twin)"
      return
    fi
    sleep 1
  done
  trap 'stop=1' TERM INT # python writes its checkpoint: wait for it
  echo "started $name"
  ((gpus == 0)) || export CUDA_VISIBLE_DEVICES=$((SLOT % gpus))
  while true; do
    code=0
    eval "$command" >>"$RUNS_DIR/$name.log" 2>&1 || code=$?
    [[ $code == 75 && -z $stop ]] || break # 75, in use: an orphan of a killed sweep still holds it
    sleep 5
  done
  case $code in
    0) echo "finished $name" ;;
    75 | 130 | 143) touch "$failures/$name" && echo "stopped $name" ;; # its arms are not to wait for it
    *) touch "$failures/$name" && echo "failed $name (exit $code, see $RUNS_DIR/$name.log)" ;;
  esac
}
export -f work

# Agent steps that are left in the whole list; a run that failed or was stopped has none.
left() {
  local name first last step sum=0
  while IFS=$'\t' read -r name _ first last _; do
    [[ ! -e $RUNS_DIR/$name/summary.json && ! -e $failures/$name ]] || continue
    step=$(grep -oP 'step \K[\d,]+(?= of)' "$RUNS_DIR/$name.log" 2>/dev/null | tail -1 | tr -d ,) || true
    sum=$((sum + last - (${step:-0} > first ? step : first)))
  done <<<"$list"
  echo "$sum"
}

# Prints what happens and, every minute, how far the sweep is. Ends when the last run has: each holds the pipe open.
report() {
  local all finished=0 running=0 failed=0 at_start now line hours
  trap '' TERM INT
  all=$(wc -l <<<"$list") at_start=$(left) SECONDS=0
  while true; do
    if read -rt 60 line; then
      echo "$line"
      case $line in
        started*) running=$((running + 1)) ;;
        finished*) running=$((running - 1)) finished=$((finished + 1)) ;;
        stopped*) running=$((running - 1)) ;;
        *twin\)) failed=$((failed + 1)) ;;
        failed*) running=$((running - 1)) failed=$((failed + 1)) ;;
      esac
    elif (($? <= 128)); then # end of input, not the end of the minute
      break
    fi
    now=$(left) hours="?"
    ((now >= at_start)) || hours=$(awk "BEGIN { printf \"%.1f\", $SECONDS / 3600 * $now / ($at_start - $now) }")
    echo "  $finished of $all done, $running running, $failed failed, $hours hours left"
  done
  if ((finished + failed < all)); then
    echo "stopped: $((all - finished)) runs are not finished; the same command goes on" >&2
    exit 143
  fi
  ((failed == 0)) || echo "error: $failed runs failed (see above); the same command runs only those again" >&2
  ((failed == 0))
}

set -m # a process group of its own, which a signal to this script is passed on to
# shellcheck disable=SC2016
xargs -d '\n' -n 1 -P "$jobs" --process-slot-var=SLOT bash -c 'work "$1"' work <<<"$list" | report &
trap 'kill -TERM -- "-$(jobs -p)"' TERM INT
code=0
wait $! || code=$?
while [[ -n $(jobs -pr) ]]; do wait $! || code=$?; done # a signal ends the first wait early
exit "$code"
