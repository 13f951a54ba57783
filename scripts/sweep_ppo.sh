#!/usr/bin/env bash
# A study of PPO: for each seed the dense run, then l1 and random at three rates. --help lists the variables.
set -euo pipefail
RATES=${RATES:-0.1 0.3 0.5} exec "$(dirname "$0")/sweep.sh" ppo "$@"
