"""The benchmark measures real runs; here that its table holds together, never how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_runs_programs_in_turn_and_saves_rows_ratios_and_the_share_of_the_bound(tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--algorithms", "ppo", "--programs", "ours", "sb3"]
    words += ["--rounds", "2", "--steps", "1024", "--num-envs", "2", "--num-threads", "1", "--seconds", "1"]
    done = subprocess.run(
        [*words, "--json", str(tmp_path / "b.json"), "--csv", str(tmp_path / "b.csv")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    saved, table = json.loads((tmp_path / "b.json").read_text()), pd.read_csv(tmp_path / "b.csv")
    assert table.program.tolist() == ["ours", "sb3", "ours", "sb3"] and table.repetition.tolist() == [1, 1, 2, 2]
    assert (table.steps_per_second > 0).all() and (table.peak_ram_bytes > 1e8).all()
    assert [row["command"] for row in saved["rows"]] == table.command.tolist()
    us = saved["bounds"]["ppo"]
    assert us["bound"] == us["emulator"] + us["acting"] + us["learning"]
    assert us["share of the bound"] == us["bound"] / us["step"] and us["share of the mask"] == us["masking"] / us["step"]
    assert "median ratio to sb3" in done.stdout
