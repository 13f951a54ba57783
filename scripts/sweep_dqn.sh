#!/usr/bin/env bash
# Every DQN arm of the study: for each seed the dense run, then random and l1 at five rates, forked from its prune point.
#   scripts/sweep_dqn.sh                             seed 1, 2M steps a run
#   SEEDS="1 2 3" scripts/sweep_dqn.sh --track       three seeds, to W&B; further options go to every run
#   DRY_RUN=1 scripts/sweep_dqn.sh                   print the commands, one line a run
# SEEDS, RATES, GAMES: the matrix. AA=1: an A/A arm for each seed, first. JOBS: runs side by side (default: what cores and memory
# allow). RUNS_DIR: where they go. Interrupted or killed, the same command goes on where it was and repeats nothing.
set -euo pipefail
exec "$(dirname "$0")/sweep.sh" dqn "${RATES:-0.05 0.1 0.3 0.5 0.8}" "$@"
