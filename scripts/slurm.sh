#!/usr/bin/env bash
# Run a sweep on a Slurm cluster as two job arrays: the dense runs to their cuts, then everything from there on.
#   SEEDS="1 2 3" scripts/slurm.sh scripts/sweep_ppo.sh --num-threads 4 --track
#   SBATCH="--partition=gpu --gres=gpu:1 --cpus-per-task=4 --time=8:00:00" scripts/slurm.sh scripts/sweep_dqn.sh --num-threads 4
# The second array starts when every dense run has ended. An arm whose dense run failed fails too; the others are trained.
# A job that is preempted, requeued or out of time writes a checkpoint. Slurm restarts it unless its time was up. Once all
# jobs have ended, submit the same command again for what failed or ran out of time; nothing is repeated.
# Environment variables: SBATCH (options of every sbatch), RUNS_DIR (on a disk that all nodes share), DRY_RUN (1 prints the
# commands and submits nothing) and the others of the sweep, which scripts/sweep.sh --help lists.
set -euo pipefail
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
(($# > 0)) || { sed -n '2,/^set/s/^# //p' "$0" >&2 && exit 2; }

export RUNS_DIR=${RUNS_DIR:-runs}
[[ ${DRY_RUN:-0} == [01] ]] || { echo "error: DRY_RUN must be 0 or 1, got $DRY_RUN" >&2 && exit 2; }
no_sweep="error: what follows scripts/slurm.sh must be a sweep with its options, got $*"
command -v -- "$1" >/dev/null || { echo "$no_sweep" >&2 && exit 2; }
commands=$(DRY_RUN=1 "$@") # its name is relative to where the user is
cd "$(dirname "$0")/.."
grep -q ' --until-cut$' <<<"$commands" || { echo "$no_sweep" >&2 && exit 2; }
[[ ${DRY_RUN:-0} != 1 ]] || { echo "$commands" && exit; }
command -v sbatch >/dev/null || { echo "error: sbatch is not there: submit from a machine of a Slurm cluster" >&2 && exit 2; }
most=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *//p') || true
jobs=$(wc -l <<<"$commands") fewer="submit fewer SEEDS, RATES or GAMES at once"
((jobs < ${most:-1001})) ||
  { echo "error: these $jobs jobs do not fit into an array (MaxArraySize is ${most:-1001}): $fewer" >&2 && exit 2; }
mkdir -p "$RUNS_DIR" 2>/dev/null && [[ -w $RUNS_DIR ]] ||
  { echo "error: RUNS_DIR must be a folder that can be written, got $RUNS_DIR" >&2 && exit 2; }
list=$(mktemp "$RUNS_DIR/slurm-XXXXXX.txt")
echo "$commands" >"$list"

# submit LINES [option of sbatch]...: an array with a job for each of these lines of the list. Prints its id.
submit() {
  # shellcheck disable=SC2086 # SBATCH is a list of words
  sbatch --parsable --array="$1" --job-name=atari-prune --output="$RUNS_DIR/slurm-%A_%a.log" --requeue --open-mode=append \
    --signal=B:TERM@60 ${SBATCH:-} "${@:2}" <<TASK
#!/usr/bin/env bash
cd $(printf '%q' "$PWD") && command=\$(sed -n "\${SLURM_ARRAY_TASK_ID}p" $(printf '%q' "$list")) &&
  [[ -n \$command ]] || { echo "error: this job has no command in its list" >&2 && exit 1; }
eval "exec \$command"
TASK
}

to_cut=$(grep -ne ' --until-cut$' "$list" | cut -d: -f1 | paste -sd,)
to_end=$(grep -nve ' --until-cut$' "$list" | cut -d: -f1 | paste -sd,)
job=$(submit "$to_cut")
echo "dense runs to their cuts: job $job"
# afterany, not afterok: one dense run that failed must not hold back the arms of the others
rest=$(submit "$to_end" --dependency="afterany:${job%%;*}")
echo "everything from there on: job $rest"
