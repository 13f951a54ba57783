"""A sweep as two job arrays on a real Slurm of one node: dependencies, a job requeued in the middle, a job that fails."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL, flags, summary
from tests.test_resume import same_bits

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("slurmctld") or os.geteuid() != 0, reason="needs root and Slurm (slurm-wlm)")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    one_node = ROOT / "tests" / "slurm_one_node.sh"
    subprocess.run(["bash", str(one_node), "up", str(tmp_path / "slurm")], check=True)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm" / "slurm.conf"))
    yield
    subprocess.run(["scancel", "--user=root"], check=False)
    subprocess.run(["bash", str(one_node), "down", str(tmp_path / "slurm")], check=True)


def run(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def wait(until, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, run("squeue") + run("scontrol", "show", "job")
        time.sleep(0.1)


def states(job: str) -> dict[int, str]:
    """State of each task of an array, by its line in the list."""
    found = re.findall(r"ArrayTaskId=(\d+) .*?JobState=(\w+)", run("scontrol", "show", "job", job), re.S)
    return {int(line): state for line, state in found}


def test_a_sweep_on_slurm_survives_a_requeue_and_a_dense_run_that_fails_and_the_same_command_finishes_it(
    slurm, small_run, tmp_path, monkeypatch
):
    runs = tmp_path / "the runs"
    variables = {"SEEDS": "1 2", "RATES": "0.5", "TYPES": "random", "RUNS_DIR": str(runs)}
    for name, value in (variables | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    options = SMALL["ppo"] | {"total_timesteps": 3072, "eval_episodes": 0}
    sweep = [str(ROOT / "scripts" / "sweep_ppo.sh"), *flags(options), "--checkpoint-minutes=0.001"]
    monkeypatch.setenv("DRY_RUN", "1")
    names = re.findall(r"--run-name (\S+)", run(*sweep))
    monkeypatch.delenv("DRY_RUN")
    assert names[:2] == [names[2], names[4]] and len(names) == 6  # lines 1 and 2: to the cuts; 3 to 6: from there on
    dense, arm, failing, lost = (runs / name for name in names[2:])
    failing.mkdir(parents=True)
    (failing / "thesis.tex").write_text("years of work")  # not a run folder: the run is refused

    to_cut, to_end = re.findall(r"job (\d+)", run(str(ROOT / "scripts" / "slurm.sh"), *sweep))
    log = runs / f"slurm-{to_cut}_1.log"
    wait((dense / "checkpoint.pt").exists)
    run("scontrol", "requeue", f"{to_cut}_1")
    wait(lambda: "PENDING" in run("squeue", "-h", "-j", to_cut, "-o", "%T"))
    wait(lambda: "stopped by SIGTERM" in log.read_text(), 30)
    waiting = run("squeue", "-h", "-r", "-j", to_end, "-o", "%T").split()
    assert not arm.exists() and waiting == ["PENDING"] * 4  # for a run that is requeued too
    wait(lambda: "BeginTime" in run("squeue", "-h", "-j", to_cut, "-o", "%r"))  # Slurm would wait two minutes
    run("scontrol", "update", f"JobId={to_cut}_1", "StartTime=now")
    wait(lambda: not run("squeue", "-h"))
    assert "resumed at step" in log.read_text() and states(to_cut) == {1: "COMPLETED", 2: "FAILED"}
    assert states(to_end) == {3: "COMPLETED", 4: "COMPLETED", 5: "FAILED", 6: "FAILED"}
    assert same_bits(arm, small_run("ppo", **options, prune_type="random", prune_rate=0.5))

    (failing / "thesis.tex").unlink()
    finished = (arm / "summary.json").stat().st_mtime_ns
    run(str(ROOT / "scripts" / "slurm.sh"), *sweep)
    wait(lambda: not run("squeue", "-h"))
    half = options["total_timesteps"] // 2
    assert [summary(folder)["agent_steps_run"] for folder in (dense, arm, failing, lost)] == [2 * half, half, 2 * half, half]
    assert (arm / "summary.json").stat().st_mtime_ns == finished
