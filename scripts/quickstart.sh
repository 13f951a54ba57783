#!/usr/bin/env bash
# Install, train a small PPO and a small DQN on SpaceInvaders with an L1 cut at 0.5, print what the cut cost.
#   scripts/quickstart.sh             about five minutes on two cores; a second call prints the table again
#   DRY_RUN=1 scripts/quickstart.sh   print the two training commands
set -euo pipefail
cd "$(dirname "$0")/.."

common="--prune-type l1 --prune-rate 0.5 --num-threads $((($(nproc) + 1) / 2))"
runs=(
  "ppo_atari_prune.py --run-name quickstart-ppo --total-timesteps 40960 $common"
  "dqn_atari_prune.py --run-name quickstart-dqn --total-timesteps 20000 --learning-starts 2000 --buffer-size 20000 --exploration-fraction 0.5 $common"
)
if [[ -n ${DRY_RUN:-} ]]; then printf 'python %s\n' "${runs[@]}"; exit; fi

[[ -x .venv/bin/python ]] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt

pids=()
trap 'kill "${pids[@]}" 2> /dev/null' INT TERM
for run in "${runs[@]}"; do
  read -ra words <<< "$run"
  echo "training: python $run"
  .venv/bin/python "${words[@]}" < /dev/null > >(sed -u "s/^/${run:0:3}: /") 2>&1 &
  pids+=($!)
done
failed=()
for k in "${!runs[@]}"; do wait "${pids[k]}" || failed+=("${runs[k]}"); done
if ((${#failed[@]})); then
  printf 'failed: python %s\n' "${failed[@]}" >&2
  exit 1
fi

.venv/bin/python scripts/table.py runs/quickstart-ppo runs/quickstart-dqn
cat << 'TEXT'
Runs as short as these play near chance: random play scores 148, and ten games say little. The curves:
  .venv/bin/tensorboard --logdir runs
A run of the study:
  .venv/bin/python dqn_atari_prune.py --prune-type l1 --prune-rate 0.5 --seed 1
TEXT
