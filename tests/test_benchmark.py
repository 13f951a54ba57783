"""The benchmark measures real runs; here that its tables hold together, never how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from checks import benchmark as program
from checks.benchmark import compare, learning_speeds, watch
from checks.step_parts import bound
from prune_utils.basics import UserError

ROOT = Path(__file__).resolve().parents[1]


def benchmark(tmp_path: Path, *words: str) -> tuple[dict, str]:
    """What the benchmark of short PPO runs saves and prints."""
    command = [sys.executable, "-m", "checks.benchmark", "--algorithms", "ppo", "--json", str(tmp_path / "b.json")]
    command += ["--csv", str(tmp_path / "b.csv")]
    command += ["--num-envs", "2", "--num-threads", "1", "--seconds", "0.5", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "b.json").read_text()), done.stdout


def test_the_benchmark_runs_programs_in_turn_and_saves_rows_and_ratios(tmp_path):
    saved, printed = benchmark(tmp_path, "--programs", "ours", "sb3", "--jobs", "2", "--rounds", "1", "--steps", "1024")
    table = pd.DataFrame(saved["rows"])
    assert table.program.tolist() == ["ours", "sb3"] and table.side_by_side.tolist() == [2, 2] and saved["bounds"] == []
    assert pd.read_csv(tmp_path / "b.csv").steps_per_second.tolist() == table.steps_per_second.tolist()
    assert (table.steps_per_second > 0).all() and (table.peak_ram_bytes > 1e8).all()
    ours, sb3 = table.steps_per_second
    assert [row["median ratio to sb3"] for row in saved["table"]] == pytest.approx([ours / sb3, 1])
    assert "median ratio to sb3" in printed


def test_the_bound_is_compared_with_the_step_that_was_measured():
    row = {"num_envs": 2, "steps_per_second": 100.0}  # a step of both games takes 20,000 microseconds
    us = program.measure_bound("ppo", row, program.Args(num_envs=2, num_threads=1))
    assert us["step"] == 20_000 and min(us["mask"], us["update"]) > 0
    assert us["bound / step"] == us["bound"] / 20_000 and us["mask / update"] == us["mask"] / us["update"]


def test_an_earlier_checkout_is_measured_in_turn_with_this_one_and_so_is_its_start(tmp_path):
    saved, printed = benchmark(tmp_path, "--programs", "ours", "old", "--old", str(ROOT), "--rounds", "1", "--steps", "512")
    ours, old = saved["rows"]
    assert (ours["program"], old["program"], saved["bounds"]) == ("ours", "old", [])
    (row,) = (row for row in saved["table"] if row["program"] == "ours")
    assert row["ratio of medians"] == pytest.approx(ours["steps_per_second"] / old["steps_per_second"])
    assert 1 < saved["rows"][0]["start_up_seconds"] < 300 and "start_up_seconds" in saved["rows"][1]
    assert "from the start of a process" in printed


def test_ratios_are_of_one_round_with_as_many_runs_side_by_side():
    # old alone 100, 200, 400, two side by side 50; ours alone 110, 180, 400, two side by side 60
    speeds = {("old", 1): [100, 200, 400], ("old", 2): [50] * 3, ("ours", 1): [110, 180, 400], ("ours", 2): [60] * 3}
    rows = [
        {"algorithm": "dqn", "program": program, "side_by_side": jobs, "repetition": k, "speed": speed, "start": np.nan}
        for (program, jobs), each in speeds.items()
        for k, speed in enumerate(each)
    ]
    table = compare(pd.DataFrame(rows), "speed", "old")
    alone, together = table.loc[("dqn", "ours", 1)], table.loc[("dqn", "ours", 2)]
    # 1.1, 0.9, 1: round by round; 180 / 200: of the medians
    assert alone[["median ratio to old", "min ratio to old", "max ratio to old"]].tolist() == pytest.approx([1, 0.9, 1.1])
    assert alone["ratio of medians"] == 0.9 and together["ratio of medians"] == together["min ratio to old"] == 1.2


def test_speeds_of_our_runs_side_by_side_are_those_of_the_time_in_which_all_of_them_learn():
    def laps(*events: tuple[int, float]) -> list:
        return [SimpleNamespace(step=step, wall_time=seconds) for step, seconds in events]

    # the first run is alone until 3 s, and the second from 6 s on; a lap of 1,000 steps before learning starts counts for none
    runs = [laps((1000, 0), (2000, 1), (3000, 2), (4000, 4), (5000, 6)), laps((1000, 1), (2000, 3), (3000, 5), (4000, 7))]
    assert learning_speeds(runs, 1000) == [1000 / 2, 1000 / 2]
    assert learning_speeds(runs[:1], 1000) == [3000 / 5]
    assert learning_speeds(runs, 4000) is None and learning_speeds([runs[0][:2], runs[1]], 1000) is None


def test_no_measurement_begins_after_the_limit_and_what_there_is_is_shown(monkeypatch, tmp_path, capsys):
    row = {"program": "ours", "algorithm": "ppo", "side_by_side": 2, "steps_per_second": 10.0, "num_envs": 8}
    monkeypatch.setattr(program, "measure", lambda *_: row | {"peak_ram_bytes": 1e9, "peak_gpu_bytes": None})
    with pytest.raises(SystemExit, match=r"^0$"):
        program.main(program.Args(programs=("ours",), jobs=(2,), rounds=3, limit=0.0, csv=tmp_path / "b.csv"))
    printed = capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "b.csv")) == 1 and "of 1 rounds" in printed
    assert "the limit of 0 s is reached after 1 of 6 measurements" in printed


def test_a_program_that_fails_is_named_and_the_others_are_measured(monkeypatch, tmp_path, capsys):
    def measure(program: str, algorithm: str, jobs: int, *_) -> dict:
        if (program, algorithm) == ("sb3", "dqn"):
            raise SystemExit("error: no such game")
        row = {"program": program, "algorithm": algorithm, "side_by_side": jobs, "num_envs": 8}
        return row | {"steps_per_second": 10.0, "peak_ram_bytes": 1e9, "peak_gpu_bytes": None}

    monkeypatch.setattr(program, "measure", measure)
    monkeypatch.setattr(program, "measure_bound", lambda *_: {"bound": 1.0})
    with pytest.raises(SystemExit, match=r"^1$"):
        program.main(program.Args(rounds=2, json=tmp_path / "b.json"))
    saved = json.loads((tmp_path / "b.json").read_text())
    assert capsys.readouterr().err == "sb3 dqn x1 failed: error: no such game\n"  # once: it is not tried again
    rows = [(row["algorithm"], row["program"], row["count"]) for row in saved["table"]]
    assert rows == [("dqn", "ours", 2), ("ppo", "ours", 2), ("ppo", "sb3", 2)] and len(saved["bounds"]) == 4
    assert [row["median ratio to sb3"] for row in saved["table"]] == [None, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds must be above 0, got 0"),
        ({"jobs": (1, 0)}, "--jobs must be above 0, got 0"),
        ({"jobs": (2, 2)}, "--jobs must name each value once, got 2 2"),
        ({"programs": ()}, "--programs must name each value once, got nothing"),
        ({"programs": ("ours", "old")}, "--old must be a checkout where --programs has old, got None"),
        ({"json": Path("/nowhere/b.json")}, "--json must be a file in a folder that can be written, got /nowhere/b.json"),
    ],
)
def test_what_would_fail_after_the_measurements_is_refused_before_them(options, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        program.main(program.Args(**options))


def test_the_bound_is_the_parts_in_turn_but_for_a_dqn_whose_emulator_steps_while_the_gpu_learns():
    us = {"emulator": 3.0, "acting": 1.0, "learning": 5.0, "update": 7.0, "mask": 0.1}
    assert bound("dqn", us, cuda=False) == bound("ppo", us, cuda=False) == bound("ppo", us, cuda=True) == 9
    assert bound("dqn", us, cuda=True) == 6 and bound("dqn", us | {"emulator": 8.0}, cuda=True) == 9


def test_a_program_that_dies_is_reported_with_its_last_lines():
    with pytest.raises(SystemExit, match=r"no steps came from (.|\n)*no such game"):
        watch([sys.executable, "-c", "raise SystemExit('no such game')"], {}, "^SPS", 100, 1.0, ".", 2)


def test_speeds_of_programs_side_by_side_are_measured_in_one_window(tmp_path):
    ticks = "import time\nfor _ in range(1000):\n    print('SPS: 1', flush=True)\n    time.sleep(0.02)"
    _, speeds, peaks = watch([sys.executable, "-c", ticks], {}, "^SPS:", 100, 0.5, str(tmp_path), 2)
    assert len(speeds) == 2 and all(100 < speed < 50_000 for speed in speeds)  # 5,000 on an idle machine
    assert peaks["peak_ram_bytes"] > 1e6
