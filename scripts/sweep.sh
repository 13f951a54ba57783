#!/usr/bin/env bash
# Train every arm of a study: for each game and seed one dense run, then every criterion at every rate, forked at its cut.
#   scripts/sweep_dqn.sh                           DQN, seed 1, 2M agent steps per run
#   SEEDS="1 2 3" scripts/sweep_ppo.sh --track     PPO, three seeds, logged to W&B; options go to every run
#   DRY_RUN=1 scripts/sweep_ppo.sh                 print the commands, one per line
# Phase one trains the dense runs to their cuts, phase two everything from there on. RUNS_DIR/NAME.log has the output of a run.
# After an interruption or a kill the same command resumes; nothing finished is trained again. A run that fails is named.
# Environment variables, with their defaults:
#   SEEDS="1"   RATES="0.05 0.1 0.3 0.5 0.8" (DQN), "0.1 0.3 0.5" (PPO)   TYPES="l1 random"   GAMES="SpaceInvadersNoFrameskip-v4"
#   AA=0        1: for each seed an A/A arm too, the dense run forked with new random numbers
#   FORKS=0     3: three forks of every arm, dense included, with fork seeds 1 to 3, in place of one fork of each pruned arm
#   GRADUAL=0   1: every unstructured arm a second time, pruned in 8 cuts from --prune-at to --prune-until (0.8)
#   JOBS=0      runs side by side; 0: as many as memory and cores allow (a run takes --num-threads cores)
#   RUNS_DIR=runs   DRY_RUN=0   PYTHON=.venv/bin/python
# Exit codes: 0 all runs are finished, 1 some failed or none fits into memory, 2 invalid options or variables, 143 stopped by
# SIGTERM or Ctrl-C.
set -euo pipefail
trap '' PIPE # output that nobody reads ends no training
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
cd "$(dirname "$0")/.."

export RUNS_DIR=${RUNS_DIR:-runs} GPUS
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || { echo "error: PYTHON must be a Python with requirements.txt, got $python" >&2 && exit 2; }
plan=$("$python" -m checks.plan_sweep "$@") # jobs, GPUs, dashboard; then NAME DENSE_NAME COMMAND...
read -r jobs GPUS dashboard <<<"$plan"
list=$(tail -n +2 <<<"$plan")
if [[ ${DRY_RUN:-0} == 1 ]]; then
  cut -d' ' -f3- <<<"$list"
  exit
fi
to_cut=$(grep -e ' --until-cut$' <<<"$list")
to_end=$(grep -ve ' --until-cut$' <<<"$list")
mkdir -p "$RUNS_DIR"

# Train the run of one line and print what came of it. It never fails: xargs would stop.
# shellcheck disable=SC2329
work() {
  local name=$1 dense=$2 code=75 ended=finished stopped=
  shift 2
  if [[ ${*: -1} == --until-cut ]]; then
    [[ ! -e $RUNS_DIR/$dense/prune_point.pt && ! -e $RUNS_DIR/$dense/summary.json ]] || return 0
    ended="paused"
  elif [[ ! -e $RUNS_DIR/$dense/prune_point.pt && ! -e $RUNS_DIR/$name/summary.json ]]; then
    [[ $name != "$dense" ]] || return 0 # phase one has named it
    if [[ ! -e $RUNS_DIR/$name/checkpoint.pt ]]; then
      echo "failed $name (not started: $RUNS_DIR/$dense has no prune_point.pt; if it is finished, move it away to train it again)"
      return 0
    fi
  fi
  if [[ $GPUS != - ]]; then
    local gpus
    IFS=, read -ra gpus <<<"$GPUS"
    export CUDA_VISIBLE_DEVICES=${gpus[SLOT % ${#gpus[@]}]}
  fi
  trap 'stopped=1' TERM INT HUP # the run has the signal too and writes its checkpoint: wait for it
  echo "started $name"
  while [[ $code == 75 && -z $stopped ]]; do
    "$@" >>"$RUNS_DIR/$name.log" 2>&1
    code=$?
    [[ $code != 75 ]] || { echo "waiting for $name (another process trains it)" && sleep 5; } # an orphan, or another sweep
    if [[ $code == 75 && $ended == paused && -e $RUNS_DIR/$dense/prune_point.pt ]]; then code=0; fi # its forks can start
  done
  case $code in
    0) echo "$ended $name" ;;
    75 | 129 | 130 | 143) echo "stopped $name" ;;
    *) echo "failed $name (exit $code, see $RUNS_DIR/$name.log)" ;;
  esac
}
export -f work

# One start per line of standard input, `jobs` of them side by side.
# shellcheck disable=SC2016
phase() { xargs -L 1 -P "$jobs" --process-slot-var=SLOT bash -c 'work "$@"' work; }

# Print each line and count. It ends after the last run, since every run holds the pipe open.
report() {
  trap '' TERM INT HUP
  local all event name rest
  local -A finished=() failed=() waits=()
  all=$(wc -l <<<"$to_end")
  while read -r event name rest; do
    case $event in
      finished)
        finished[$name]=1
        unset "failed[$name]" # phase one may have failed after its prune point was there
        rest="(${#finished[@]} of $all)"
        ;;
      failed) failed[$name]=1 ;;
      paused) rest="at its cut" ;;
      waiting)
        [[ -z ${waits[$rest]:-} ]] || continue # said once
        waits[$rest]=1
        ;;
    esac
    echo "$event $name${rest:+ $rest}" 2>/dev/null || true
  done
  if ((${#finished[@]} + ${#failed[@]} < all)); then
    echo "stopped: $((all - ${#finished[@]})) of $all runs are not finished; the same command resumes them" >&2
    exit 143
  fi
  ((${#failed[@]} == 0)) || { echo "error: ${#failed[@]} of $all runs failed (see above); the same command tries them again" >&2 && exit 1; }
}

set -m # a process group of its own, so that a signal can be passed on to all of it
{ phase <<<"$to_cut" && phase <<<"$to_end"; } | report &
trap 'kill -TERM -- "-$(jobs -p)"' TERM INT HUP
code=0
wait $! || code=$?
while [[ -n $(jobs -pr) ]]; do wait $! || code=$?; done # a signal ends the first wait early
[[ $code != 0 ]] || echo "their report: $(printf '%q ' "$python" -m analysis "$RUNS_DIR")" 2>/dev/null || true
[[ -z $dashboard || $code == 143 ]] || echo "the W&B view and report of these runs: $dashboard" 2>/dev/null || true
exit "$code"
