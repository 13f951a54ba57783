"""The benchmark measures real runs; here that its table holds together, never how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from scripts.benchmark import bound, watched

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_runs_programs_in_turn_and_saves_rows_ratios_and_the_share_of_the_bound(tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--algorithms", "ppo", "--programs", "ours", "sb3"]
    words += ["--rounds", "2", "--steps", "1024", "--num-envs", "2", "--num-threads", "1", "--seconds", "1"]
    done = subprocess.run([*words, "--json", str(tmp_path / "b.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "b.json").read_text())
    table = pd.DataFrame(saved["rows"])
    assert table.program.tolist() == ["ours", "sb3", "ours", "sb3"] and table.repetition.tolist() == [1, 1, 2, 2]
    assert (table.steps_per_second > 0).all() and (table.peak_ram_bytes > 1e8).all()
    assert [row["program"] for row in saved["table"]] == ["ours", "sb3"] and saved["table"][1]["median ratio to sb3"] == 1
    assert [row["repetition"] for row in saved["bounds"]] == [1, 2]
    for us, row in zip(saved["bounds"], saved["rows"][::2], strict=True):
        assert us["step"] == pytest.approx(2 / row["steps_per_second"] * 1e6, rel=1e-3) and min(us["mask"], us["update"]) > 0
        assert us["bound / step"] == us["bound"] / us["step"] and us["mask / update"] == us["mask"] / us["update"]
    assert "median ratio to sb3" in done.stdout


def test_the_bound_is_the_parts_in_turn_but_for_a_dqn_whose_emulator_steps_while_the_gpu_learns():
    us = {"emulator": 3.0, "acting": 1.0, "learning": 5.0, "update": 7.0, "mask": 0.1}
    assert bound("dqn", us, cuda=False) == bound("ppo", us, cuda=False) == bound("ppo", us, cuda=True) == 9
    assert bound("dqn", us, cuda=True) == 6 and bound("dqn", us | {"emulator": 8.0}, cuda=True) == 9


def test_a_program_that_dies_is_reported_with_its_last_lines():
    with pytest.raises(SystemExit, match=r"no steps came from (.|\n)*no such game"):
        watched([sys.executable, "-c", "raise SystemExit('no such game')"], {}, "^SPS", 100, 1.0)
