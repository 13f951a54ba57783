#!/usr/bin/env bash
# A sweep on a cluster, as Slurm job arrays: the dense runs, and for each of them its arms, which wait until it has ended well.
#   SEEDS="1 2 3" scripts/slurm.sh scripts/sweep_ppo.sh --num-threads 4 --track      SEEDS, RATES, ... as in the sweep
#   SBATCH="--partition=gpu --gres=gpu:1 --cpus-per-task=4 --time=8:00:00" scripts/slurm.sh scripts/sweep_dqn.sh
# SBATCH goes to every sbatch. A job that is preempted, requeued or out of time gets SIGTERM, writes its checkpoint and goes on
# when it is started again; submit the same command again for what failed. RUNS_DIR must be on a disk that all nodes share.
set -euo pipefail
(($# > 0)) || { sed -n '2,6s/^# //p' "$0" >&2 && exit 2; }
cd "$(dirname "$0")/.."

export RUNS_DIR=${RUNS_DIR:-runs}
commands=$(DRY_RUN=1 "$@")
mkdir -p "$RUNS_DIR"
list=$(mktemp "$RUNS_DIR/slurm-XXXXXX.txt")
echo "$commands" >"$list"

# submit LINES [option of sbatch]...: an array with a job for each of these lines of the list. Prints its id.
submit() {
  # shellcheck disable=SC2086 # words on purpose
  sbatch --parsable --array="$1" --job-name=atari-prune --output="$RUNS_DIR/slurm-%A_%a.log" --requeue --open-mode=append \
    --signal=B:TERM@60 "${@:2}" ${SBATCH:-} <<TASK
#!/usr/bin/env bash
cd $(printf '%q' "$PWD")
eval "exec \$(sed -n "\${SLURM_ARRAY_TASK_ID}p" $(printf '%q' "$list"))"
TASK
}

lines() { grep -nF -- "$1" "$list" | cut -d: -f1 | paste -sd,; }
dense=$(grep -vnF -- --fork-from "$list" | cut -d: -f1)
job=$(submit "$(paste -sd, <<<"$dense")")
echo "dense runs: job $job"
for line in $dense; do
  name=$(sed -n "${line}p" "$list" | grep -oP -- '--run-name \K\S+')
  arms=$(lines "--fork-from $(printf %q "$RUNS_DIR/$name") ")
  echo "arms of $name: job $(submit "$arms" --dependency="afterok:${job}_$line" --kill-on-invalid-dep=yes)"
done
