#!/usr/bin/env bash
# What only a GPU can show: the tests on it, the speed beside CleanRL, and a seed of the study.
#   checks/gpu.sh OUT tests speed    9 minutes at most
#   checks/gpu.sh OUT study          10 minutes at most
# OUT gets machine.txt, tests.txt with every failure, speed.txt and gpu_speed_*.csv, study.txt and packed runs in study.tar.gz.
# Environment variables, with their defaults:
#   PYTHON=.venv/bin/python   TESTS=150 SPEED=380 STUDY=570 (seconds of each part)   STEPS=30000 (of a timed run)   SEED=11
#   CLEANRL= (a checkout; without it CleanRL is left out)   CLEANRL_PYTHON=$PYTHON (one that has CleanRL's packages)
set -uo pipefail
if [[ " $* " == *" --help "* || $# -lt 2 ]]; then sed -n '2,/^set/s/^# //p' "$0" && exit $(($# < 2 ? 2 : 0)); fi
for part in "${@:2}"; do
  [[ $part =~ ^(tests|speed|study)$ ]] || { echo "error: parts are tests, speed and study, got $part" >&2 && exit 2; }
done
mkdir -p "$1" && out=$(realpath "$1") && shift
cd "$(dirname "$0")/.." || exit
PYTHON=$(realpath -s "$(command -v "${PYTHON:-.venv/bin/python}")")
export PYTHON
"$PYTHON" -c 'import torch, checks.benchmark, tests.conftest
print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' | tee "$out/machine.txt" || exit
nproc >>"$out/machine.txt"

# shellcheck disable=SC2329  # called by name
tests() { # in processes of pytest-xdist, so that a time limit stops pytest and not a training, and it reports what failed
  local half=$((${TESTS:-150} / 2)) failed=0
  # those that train on the GPU come first; modules that need a package which is not here are named as errors
  timeout -s INT -k 15 "$half" "$PYTHON" -m pytest -q -n 8 tests/test_cuda.py >"$out/tests.txt" 2>&1 || failed=1
  OMP_NUM_THREADS=1 timeout -s INT -k 15 "$half" "$PYTHON" -m pytest -q -n "$(nproc)" --dist=load --continue-on-collection-errors \
    tests/test_training.py tests/test_resume.py tests/test_structured.py tests/test_gradual.py tests/test_evaluation.py tests \
    --deselect tests/test_cuda.py >>"$out/tests.txt" 2>&1 || failed=1
  grep -E '^(FAILED|ERROR)|[0-9] (passed|failed|skipped)|Interrupt' "$out/tests.txt"
  return "$failed"
}

# shellcheck disable=SC2329
mps() { # from here on runs side by side share the GPU
  if nvidia-cuda-mps-control -d 2>/dev/null; then
    trap 'echo quit | timeout 10 nvidia-cuda-mps-control' EXIT
  else
    echo "no MPS: runs side by side take turns on the GPU" | tee -a "$out/machine.txt"
  fi
}

# shellcheck disable=SC2329
speed() { # beside CleanRL alone, then many runs side by side
  local alone=(--programs ours) seconds=${SPEED:-380} failed=0
  [[ -z ${CLEANRL:-} ]] || alone+=(cleanrl --cleanrl "$CLEANRL" --cleanrl-python "${CLEANRL_PYTHON:-$PYTHON}")
  measure() { # NAME SECONDS OPTION...: the last run that begins in time may take half a minute more
    timeout -k 10 $(($2 + 45)) "$PYTHON" -m checks.benchmark "${@:3}" --rounds 3 --steps "${STEPS:-30000}" --seconds 5 \
      --limit $(($2 - 30)) --csv "$out/gpu_speed_$1.csv" | tee -a "$out/speed.txt" || failed=1
  }
  measure alone $((seconds * 6 / 10)) "${alone[@]}"
  mps
  measure side_by_side $((seconds * 4 / 10)) --programs ours --jobs 8
  return "$failed"
}

# shellcheck disable=SC2329
study() { # dense, A/A, l1 and random at 0.5
  local runs=$out/runs code=0
  mps
  RUNS_DIR=$runs SEEDS=${SEED:-11} AA=1 RATES="0.5" timeout "${STUDY:-570}" env -u SEED \
    scripts/sweep_ppo.sh --num-threads 4 --checkpoint-minutes 0 | tee "$out/study.txt" || code=$?
  [[ $code != 124 ]] || code=0 # the time is up: what is finished counts
  mkdir -p "$runs"
  find "$runs" -name summary.json -printf '%h\0' | xargs -0r scripts/collect.sh "$out/study" &&
    tar -C "$out" -czf "$out/study.tar.gz" study && return "$code"
}

failed=0
for part in "$@"; do "$part" || failed=1; done
exit $failed
