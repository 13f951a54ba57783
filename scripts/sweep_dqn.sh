#!/usr/bin/env bash
# A study of DQN: for each seed the dense run, then l1 and random at five rates. --help lists the variables.
set -euo pipefail
RATES=${RATES:-0.05 0.1 0.3 0.5 0.8} exec "$(dirname "$0")/sweep.sh" dqn "$@"
