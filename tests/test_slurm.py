"""A sweep as job arrays on a real Slurm of one node: dependencies, a job requeued in the middle, a job that fails."""

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


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def wait(until, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, told("squeue") + told("scontrol", "show", "job")
        time.sleep(0.1)


def test_a_sweep_on_slurm_survives_a_requeue_and_a_failing_arm_and_the_same_command_finishes_it(
    slurm, small_run, tmp_path, monkeypatch
):
    runs = tmp_path / "the runs"
    for name, value in {"PYTHON": sys.executable, "RATES": "0.5", "RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    words = ["bash", str(ROOT / "scripts" / "slurm.sh"), str(ROOT / "scripts" / "sweep_ppo.sh"), *flags(SMALL["ppo"])]
    words += ["--checkpoint-minutes=0.001"]
    dense_job, arms_job = re.findall(r"job (\d+)", told(*words))
    commands = next(runs.glob("slurm-*.txt")).read_text()
    dense, l1, other = (runs / name for name in re.findall(r"--run-name (\S+)", commands))
    assert ["none" in dense.name, "l1-0.5" in l1.name, "random-0.5" in other.name] == [True] * 3
    l1.mkdir()
    (l1 / "thesis.tex").write_text("years of work")  # not a run folder: the run is refused

    wait((dense / "checkpoint.pt").exists)
    told("scontrol", "requeue", f"{dense_job}_1")
    wait(lambda: "PENDING" in told("squeue", "-h", "-j", dense_job, "-o", "%T"))
    wait(lambda: "stopped at step" in (runs / f"slurm-{dense_job}_1.log").read_text(), 30)
    told("scontrol", "update", f"JobId={dense_job}_1", "StartTime=now")  # it would wait two minutes
    wait(lambda: not told("squeue", "-h"))
    assert "goes on at step" in (runs / f"slurm-{dense_job}_1.log").read_text()
    states = re.findall(r"ArrayTaskId=(\d).*?JobState=(\w+)", told("scontrol", "show", "job", arms_job), re.S)
    assert dict(states) == {"2": "FAILED", "3": "COMPLETED"}
    assert same_bits(other, small_run("ppo", prune_type="random", prune_rate=0.5))

    (l1 / "thesis.tex").unlink()
    finished = (other / "summary.json").stat().st_mtime_ns
    told(*words)
    wait(lambda: not told("squeue", "-h"))
    assert same_bits(l1, small_run("ppo", prune_type="l1", prune_rate=0.5))
    assert summary(l1)["agent_steps_run"] == SMALL["ppo"]["total_timesteps"] // 2
    assert (other / "summary.json").stat().st_mtime_ns == finished
