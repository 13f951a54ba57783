#!/usr/bin/env bash
# What only a GPU can show: the tests on it, the speed beside CleanRL, and a seed of the study.
#   checks/gpu.sh OUT tests speed    9 minutes at most
#   checks/gpu.sh OUT study          5 minutes at most
# Everything is written as it comes: tests.txt, failures.txt, gpu_speed_*.csv, speed.txt, and packed runs in OUT/study.
# Environment variables, with their defaults:
#   PYTHON=.venv/bin/python   TESTS=170 SPEED=370 STUDY=300 (seconds of each part)   STEPS=20000 (of a timed run)   SEED=11
#   CLEANRL= (a checkout; without it CleanRL is left out)   CLEANRL_PYTHON=$PYTHON
set -uo pipefail
if [[ " $* " == *" --help "* || $# -lt 2 ]]; then sed -n '2,/^set/s/^# //p' "$0" && exit $(($# < 2 ? 2 : 0)); fi
for part in "${@:2}"; do
  [[ $part =~ ^(tests|speed|study)$ ]] || { echo "error: parts are tests, speed and study, got $part" >&2 && exit 2; }
done
mkdir -p "$1" && out=$(realpath "$1") && shift
cd "$(dirname "$0")/.." || exit
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
export PYTHON OMP_NUM_THREADS=1
"$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' \
  | tee "$out/machine.txt"
nproc >> "$out/machine.txt"
if nvidia-cuda-mps-control -d 2>/dev/null; then
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
else
  echo "no MPS: runs side by side take turns on the GPU" | tee -a "$out/machine.txt"
fi

# shellcheck disable=SC2329  # called by name
tests() {
  local half=$((${TESTS:-170} / 2)) failed=0
  timeout "$half" "$PYTHON" -m pytest -q tests/test_cuda.py >"$out/tests.txt" 2>&1 || failed=1
  timeout "$half" "$PYTHON" -m pytest -q -n "$(nproc)" --dist=worksteal --deselect tests/test_cuda.py >>"$out/tests.txt" 2>&1 || failed=1
  grep -E '^(FAILED|ERROR|E  )' "$out/tests.txt" >"$out/failures.txt"
  tail -n 1 "$out/tests.txt"
  return "$failed"
}

# shellcheck disable=SC2329
speed() { # beside CleanRL alone, then many runs side by side
  local alone=(--programs ours) half=$((${SPEED:-370} / 2)) failed=0
  [[ -z ${CLEANRL:-} ]] || alone+=(cleanrl --cleanrl "$CLEANRL" --cleanrl-python "${CLEANRL_PYTHON:-$PYTHON}")
  measure() {
    timeout "$half" "$PYTHON" -m checks.benchmark "${@:2}" --rounds 3 --steps "${STEPS:-20000}" --seconds 5 \
      --csv "$out/gpu_speed_$1.csv" | tee -a "$out/speed.txt" || failed=1
  }
  measure alone "${alone[@]}"
  measure side_by_side --programs ours --jobs 4 8
  return "$failed"
}

# shellcheck disable=SC2329
study() {
  local runs=$out/runs code=0
  RUNS_DIR=$runs SEEDS=${SEED:-11} AA=1 RATES="0.5 0.9" timeout "${STUDY:-300}" env -u SEED \
    scripts/sweep_ppo.sh --num-threads 4 --checkpoint-minutes 1 | tee "$out/study.txt" || code=$?
  [[ $code != 124 ]] || code=0 # the time is up: the same command goes on
  mkdir -p "$runs"
  find "$runs" -name summary.json -printf '%h\0' | xargs -0r scripts/collect.sh "$out/study" && return "$code"
}

failed=0
for part in "$@"; do "$part" || failed=1; done
exit $failed
