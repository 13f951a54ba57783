#!/usr/bin/env bash
# Train a small PPO and a small DQN on SpaceInvaders side by side, prune both midway, and print one table of them. PPO loses
# half of its weights (l1), DQN half of its channels and units (l1-structured). Then an agent that lost half of its weights in
# the middle of 2M steps plays ten games.
# Needs python3 (3.11 or newer) with venv, two cores and 3 to 5 minutes, installation included; no GPU.
#   scripts/quickstart.sh               install, train, print the table, play; trains nothing that is finished
#   scripts/quickstart.sh --overwrite   train anew; options go to both trainings
#   DRY_RUN=1 scripts/quickstart.sh     print the two training commands
# Environment variables: DRY_RUN=0
set -euo pipefail
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || { sed -n '2,/^set/s/^# //p' "$0" && exit; }
cd "$(dirname "$0")/.."

[[ ${DRY_RUN:-0} == [01] ]] || { echo "error: DRY_RUN must be 0 or 1, got $DRY_RUN" >&2 && exit 2; }

for word in "$@"; do
  [[ ! ${word//_/-} =~ ^--(runs-dir|run-name|env-id) ]] || { echo "error: the quickstart sets ${word%%=*} itself" >&2 && exit 2; }
done

python=.venv/bin/python
common=(--env-id SpaceInvadersNoFrameskip-v4 --prune-rate 0.5 --eval-episodes 10 --num-threads 1 "$@")
ppo=("$python" ppo_atari_prune.py --run-name quickstart_ppo --prune-type l1 --total-timesteps 24576 "${common[@]}")
dqn=("$python" dqn_atari_prune.py --run-name quickstart_dqn --prune-type l1-structured --total-timesteps 11000
  --learning-starts 1000 --buffer-size 11000 --exploration-fraction 0.4 "${common[@]}")

if [[ ${DRY_RUN:-0} == 1 ]]; then
  printf '%q ' "${ppo[@]}" && echo
  printf '%q ' "${dqn[@]}" && echo
  exit
fi

[[ -x .venv/bin/pip ]] || python3 -m venv .venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "error: .venv is broken or older than Python 3.11: delete it, and start again with a python3 of 3.11 or newer" >&2 && exit 2; }
echo "installing requirements.txt into .venv"
unset PYTHONDONTWRITEBYTECODE # a module is compiled when it is first imported: faster than to compile all of them at once
"$python" -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt

# On a terminal each has a progress bar (tqdm reads its place from the environment), elsewhere a line per minute.
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT # Ctrl-C does not reach a background process, which has to save
echo "training PPO and DQN side by side"
TQDM_DESC=ppo TQDM_POSITION=0 "${ppo[@]}" > >(sed -u "s/^/ppo: /") &
ppo_pid=$!
TQDM_DESC=dqn TQDM_POSITION=1 "${dqn[@]}" > >(sed -u "s/^/dqn: /") &
dqn_pid=$!

# Wait for a training, and say so if it failed. One that was stopped (143) has said so itself.
ended() {
  local name=$1 pid=$2 code=0
  wait "$pid" || code=$?
  ((code == 0 || code == 143)) || echo "error: the $name run ended with exit code $code" >&2
  ((failed)) || failed=$code
}

failed=0
wait -n "$ppo_pid" "$dqn_pid" || { failed=$? && kill "$ppo_pid" "$dqn_pid" 2>/dev/null || true; } # one failed: stop the other
ended PPO "$ppo_pid"
ended DQN "$dqn_pid"
((failed == 0)) || exit "$failed"

echo
"$python" -m analysis.table runs/quickstart_ppo runs/quickstart_dqn
echo
echo "Runs as short as these learn next to nothing: random play scores 147 here, and holding RIGHTFIRE 283."
echo "The curves: .venv/bin/tensorboard --logdir runs"

echo
echo "An agent of 2M steps that lost half of its weights at 1M plays 10 games (its mean over 100 games: 445):"
"$python" -m evals.ppo_eval results/agents/ppo_l1-0.5_s1 --out runs/quickstart_agent.csv
