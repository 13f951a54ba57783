#!/usr/bin/env bash
# What only a GPU can show: the tests on it, the speed beside CleanRL, and a seed of the study.
#   checks/gpu.sh OUT tests speed    9 minutes
#   checks/gpu.sh OUT study          9 minutes; the same command resumes it
# OUT gets machine.txt, tests.txt with every failure, speed.txt and gpu_speed_*.csv, study.txt and packed runs in study.tar.gz.
# Environment variables, with their defaults:
#   PYTHON=.venv/bin/python   TESTS=135 SPEED=340 STUDY=540 (seconds of each part)   STEPS=20000 (of a timed run)   SEED=11
#   CLEANRL= (a checkout; without it CleanRL is left out)   CLEANRL_PYTHON=$PYTHON (one that has CleanRL's packages)
set -uo pipefail
if [[ " $* " == *" --help "* || $# -lt 2 ]]; then sed -n '2,/^set/s/^# //p' "$0" && exit $(($# < 2 ? 2 : 0)); fi
for part in "${@:2}"; do
  [[ $part =~ ^(tests|speed|study)$ ]] || { echo "error: parts are tests, speed and study, got $part" >&2 && exit 2; }
done
mkdir -p "$1" && out=$(realpath "$1") && shift
cd "$(dirname "$0")/.." || exit
program() { command -v "$2" || { echo "error: $1 must be a Python that is there, got $2" >&2 && return 2; }; }
PYTHON=$(program PYTHON "${PYTHON:-.venv/bin/python}") || exit
PYTHON=$(realpath -s "$PYTHON")
export PYTHON
# a missing package ends it here
"$PYTHON" -c 'import torch, checks.benchmark, tests.conftest
print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' | tee "$out/machine.txt" || exit
if [[ -n ${CLEANRL:-} ]]; then
  CLEANRL_PYTHON=$(program CLEANRL_PYTHON "${CLEANRL_PYTHON:-$PYTHON}") || exit
  PYTHONPATH=$CLEANRL "$CLEANRL_PYTHON" -c \
    'import ale_py, cv2, gymnasium, torch, tyro, cleanrl_utils.atari_wrappers, cleanrl_utils.buffers' || exit
fi
nproc >>"$out/machine.txt"

# shellcheck disable=SC2329  # called by name
tests() { # in processes of pytest-xdist: a signal stops pytest, which reports what failed, and no training catches it
  local seconds=${TESTS:-135} code failed=0
  : >"$out/tests.txt"
  run() { # SECONDS ARGUMENT...
    local before
    code=0 before=$(wc -l <"$out/tests.txt")
    timeout -s INT -k 30 "$1" "$PYTHON" -m pytest -q "${@:2}" >>"$out/tests.txt" 2>&1 || code=$?
    if [[ $code == 124 ]]; then # the time is up: what failed until then counts, and something has to have passed
      tail -n +"$((before + 1))" "$out/tests.txt" | grep -E '[1-9][0-9]* passed' >/dev/null && code=0
      ! grep -qE '^(FAILED|ERROR)' "$out/tests.txt" || code=1
    fi
    ((code == 0)) || failed=1
  }
  run $((seconds * 2 / 3)) -n 8 tests/test_cuda.py
  OMP_NUM_THREADS=1 run $((seconds / 3)) -n "$(nproc)" --dist=load \
    tests/test_{training,resume,structured,gradual,evaluation,health,run_folder,efficiency}.py # those that train on a GPU
  grep -E '^(FAILED|ERROR)|[0-9] (passed|failed|skipped)' "$out/tests.txt"
  return "$failed"
}

# shellcheck disable=SC2329
share_gpu() { # runs side by side compute at the same time, with NVIDIA's MPS
  [[ -z ${shared:-} ]] || return 0
  if nvidia-cuda-mps-control -d 2>/dev/null; then
    trap 'echo quit | timeout 10 nvidia-cuda-mps-control' EXIT
    timeout 40 "$PYTHON" -c 'import torch; torch.ones(1, device="cuda").item()' && shared=1 && return
    trap - EXIT
    echo quit | timeout 10 nvidia-cuda-mps-control
  fi
  echo "no MPS: runs side by side take turns on the GPU" | tee -a "$out/machine.txt"
}

# shellcheck disable=SC2329
speed() { # beside CleanRL alone, the parts of a step, then many runs side by side
  local alone=(--programs ours) seconds=${SPEED:-340} failed=0
  : >"$out/speed.txt"
  [[ -z ${CLEANRL:-} ]] || alone+=(cleanrl --cleanrl "$CLEANRL" --cleanrl-python "$CLEANRL_PYTHON")
  measure() { # NAME SECONDS OPTION...: the last run that begins in time may take half a minute more
    timeout -k 10 $(($2 + 40)) "$PYTHON" -m checks.benchmark "${@:3}" --rounds 3 --no-bounds --steps "${STEPS:-20000}" \
      --seconds 5 --limit $(($2 - 30)) --csv "$out/gpu_speed_$1.csv" 2>&1 | tee -a "$out/speed.txt" || failed=1
  }
  measure alone $((seconds * 6 / 10)) "${alone[@]}"
  for algorithm in dqn ppo; do
    timeout -k 10 40 "$PYTHON" -m checks.step_parts --algorithm "$algorithm" 2>&1 | tee -a "$out/speed.txt" || failed=1
  done
  share_gpu
  measure side_by_side $((seconds * 3 / 10)) --programs ours --jobs 8
  return "$failed"
}

# shellcheck disable=SC2329
study() { # dense, A/A, l1 and random at 0.5
  local runs=runs/gpu packed code=0
  packed=$(mktemp -d)
  share_gpu
  RUNS_DIR=$runs SEEDS=${SEED:-11} AA=1 RATES="0.5" timeout "${STUDY:-540}" env -u SEED \
    scripts/sweep_ppo.sh --num-threads 4 --checkpoint-minutes 1 | tee "$out/study.txt" || code=$?
  [[ $code != 124 ]] || code=0 # the time is up: the same command goes on
  find "$runs" -name summary.json -printf '%h\0' | xargs -0r scripts/collect.sh "$packed" || code=1
  tar -C "$packed" -czf "$out/study.tar.gz" .
  rm -r "$packed"
  return "$code"
}

failed=0
for part in "$@"; do "$part" || failed=1; done
exit $failed
