"""The programs of checks/: each explains itself; comparing two commits finds a single bit; faults do not change one."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from checks import faults, first_million, rounding, same_bits

ROOT = Path(__file__).resolve().parents[1]
FAKE = r"""
import json, pathlib, re, shutil, sys, time
here, words = pathlib.Path.cwd(), " ".join(sys.argv)
option = lambda name: re.findall(f"--{name}=(\\S+)", words)[-1]
folder, total = pathlib.Path(option("runs-dir")) / option("run-name"), int(option("total-timesteps"))
folder.mkdir(exist_ok=True)
saved, step = folder / "checkpoint.pt", 0
if saved.exists():
    step = int(saved.read_text())
    print(f"{folder}: resumed at step {step:,} of {total:,}")
elif "--fork-from=" in words:
    step = int((pathlib.Path(option("fork-from")) / "prune_point").read_text())
    print(f"{folder}: forked from {option('fork-from')} at step {step:,} of {total:,}")
else:
    (folder / "prune_point").write_text(str(total // 2))
curves = open(folder / "curves.csv", "w")
curves.write("global_step,tag,value\n")
for row in range(0, total + 1, total // 40):
    curves.write(f"{row},charts/epsilon,{row / total}\n")
    curves.flush()
    if row > step:
        part = saved.with_name("part")
        part.write_text(str(row))
        part.replace(saved)
        time.sleep(0.03 if "checkpoint-minutes=0.002" in words else 0)
shutil.copy(here / "model.pt", folder)
(folder / "eval.csv").write_text((here / "eval.csv").read_text())
(folder / "summary.json").write_text("{}")
"""
"""a script that writes a row each fortieth of its training, and resumes and forks"""


def checkout(folder: Path, weights: dict, games: str = "moment\nfinal\n") -> Path:
    folder.mkdir()
    (folder / "dqn_atari_prune.py").write_text(FAKE)
    (folder / "eval.csv").write_text(games)
    torch.save(weights, folder / "model.pt")
    return folder


def compare(capsys, **options) -> tuple[int, list[list[str]]]:
    """Exit code and rows of the table of checks.same_bits."""
    with pytest.raises(SystemExit) as end:
        same_bits.main(same_bits.Args(**options))
    output = capsys.readouterr()
    print(output.err)
    return end.value.code, [line.strip("| ").split(" | ") for line in output.out.splitlines() if line.startswith("| dqn")]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "checks").glob("[!_]*.py")))
def test_each_check_explains_itself_and_its_options(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"checks.{name}", run_name="__main__")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code in (0, None) and f"python -m checks.{name}" in text


def test_rounding_keeps_8_significant_bits_of_values_and_gradients():
    x = torch.tensor([1 + 1 / 256, 1 + 3 / 256], requires_grad=True)  # halfway between multiples of 1/128: the even one
    y = rounding.Rounded.apply(x)
    y.backward(torch.tensor([1 + 3 / 256, 1 + 1 / 256]))
    assert y.tolist() == [1, 1 + 1 / 64] and x.grad.tolist() == [1 + 1 / 64, 1]


def test_networks_that_round_differ_from_fp32_as_those_in_bf16_do(capsys):
    rounding.main(rounding.Options(num_steps=8))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    errors = {name: [float(cell) for cell in cells] for name, *cells in rows[1:13]}
    assert len(errors) == 12 and all(0 < error < 0.5 for row in errors.values() for error in row)
    deviations = [[float(pair.split(", ")[1]) for pair in cells] for _, *cells in rows[-4:]]
    assert 0 < deviations[0][0] < 0.01 and np.allclose(deviations[0], deviations[2], rtol=0.5)  # acting, from fp32


def test_the_quarters_of_the_first_million_are_those_that_a_run_ended():
    steps = np.arange(1000, 745_001, 1000)  # stops just before the end of the third
    run = pd.DataFrame({"global_step": steps, "episodic_return": np.ceil(steps / 250_000)})
    assert first_million.quarters(run)[:2] == [1, 2] and np.isnan(first_million.quarters(run)[2:]).all()
    assert first_million.quarters(run.replace(745_000, 749_000))[2] == 3


def test_runs_that_are_killed_and_forked_end_in_the_bits_of_those_that_were_not(tmp_path, capsys, monkeypatch):
    def saved_step(folder: Path) -> int:
        return int((folder / "checkpoint.pt").read_text()) if (folder / "checkpoint.pt").exists() else 0

    monkeypatch.setattr(same_bits, "saved_step", saved_step)
    weights = {"conv1.weight": torch.zeros(2)}
    old, new = checkout(tmp_path / "old", weights), checkout(tmp_path / "new", weights)
    options = {"old": old, "new": new, "only": ("dqn killed",), "keep": tmp_path / "runs"}
    code, rows = compare(capsys, **options)
    assert code == 0 and [row[0] for row in rows] == ["dqn none", "dqn killed", "dqn killed sticky", "dqn killed fork"]
    assert {tuple(row[2:]) for row in rows} == {("same", "same", "same")}
    killed = {row[0]: list(map(int, row[1].split("began at ")[1].split(", "))) for row in rows[1:]}
    assert {name: len(steps) for name, steps in killed.items()} == dict.fromkeys(killed, 6)  # five kills
    # kill k of a run of 4,000 steps comes after step 4000 k / 6, of a fork of 2,200 after 1100 + 1100 k / 6
    assert all(4000 * k / 6 - 100 <= step < 4000 for k, step in enumerate(killed["dqn killed"]))
    assert all(1100 + 1100 * k / 6 - 55 <= step < 2200 for k, step in enumerate(killed["dqn killed fork"]))
    assert all(steps == sorted(set(steps)) for steps in killed.values())

    shutil.rmtree(old)  # its runs are kept
    checkout(old, {"conv1.weight": torch.ones(2)})
    assert compare(capsys, **options)[0] == 0


@pytest.mark.parametrize(
    ("weights", "games", "cells"),
    [
        ({"a": torch.zeros(2), "b": torch.tensor([0.0, -0.0])}, "1\n2\n", ["different (b)", "same"]),
        ({"a": torch.zeros(2).double(), "b": torch.zeros(2)}, "1\n2\n", ["different (a)", "same"]),
        ({"a": torch.zeros(1, 2), "b": torch.zeros(2)}, "1\n2\n", ["different (a)", "same"]),
        ({"b": torch.zeros(2), "a": torch.zeros(2)}, "1\n2\n", ["different (names a, b against b, a)", "same"]),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "1\n3\n", ["same", "different (line 2: 2 against 3)"]),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "1\n", ["same", "different (line 2: 2 against )"]),
    ],
)
def test_a_bit_a_type_a_shape_a_name_or_a_line_that_differs_is_named(tmp_path, capsys, weights, games, cells):
    old = checkout(tmp_path / "old", {"a": torch.zeros(2), "b": torch.zeros(2)}, "1\n2\n")
    new = checkout(tmp_path / "new", weights, games)
    assert compare(capsys, old=old, new=new, only=("dqn none",)) == (1, [["dqn none", "`--prune-type=none`", *cells, "same"]])


def test_old_runs_that_are_only_trained_are_not_called_compared(tmp_path, capsys):
    old = checkout(tmp_path / "old", {"a": torch.zeros(2)})
    with pytest.raises(SystemExit) as end:
        same_bits.main(same_bits.Args(old=old, only=("dqn none",), keep=tmp_path / "runs", prepare=True))
    output = capsys.readouterr().out
    assert end.value.code == 0 and "nothing was compared" in output and "no difference" not in output
    with pytest.raises(SystemExit, match="--prepare must come with --keep"):
        same_bits.main(same_bits.Args(old=old, prepare=True))


def test_a_case_that_fails_is_a_difference_and_its_last_lines_are_shown(tmp_path, capsys):
    old, new = (checkout(tmp_path / name, {"a": torch.zeros(2)}) for name in ("old", "new"))
    (new / "dqn_atari_prune.py").write_text("raise SystemExit('no such option')")
    with pytest.raises(SystemExit) as end:
        same_bits.main(same_bits.Args(old=old, new=new, only=("dqn none",)))
    output = capsys.readouterr()
    assert end.value.code == 1 and "| failed | failed | failed |" in output.out and "no such option" in output.err


def test_the_cases_are_both_algorithms_with_every_option_that_shapes_the_cut():
    cases = {case.name: case.flags for case in same_bits.cases()}
    assert len(cases) == len(same_bits.cases())
    for algorithm in ("dqn", "ppo"):
        flags = [set(flags) for name, flags in cases.items() if name.startswith(algorithm)]
        needed = {"--prune-type=none", "--prune-type=l1", "--prune-type=random", "--prune-scope=global", "--no-prune-bias"}
        needed |= {"--prune-at=0", "--prune-at=0.3", "--prune-at=1", "--precision=fp32", "--precision=bf16", "--fork-seed=1"}
        needed |= {"--num-envs=1", "--num-envs=8", "--env-id=ALE/SpaceInvaders-v5"}
        assert needed <= set().union(*flags)
        assert any(case.kills == 5 for case in same_bits.cases() if case.algorithm == algorithm and not case.parent)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_that_a_kill_a_full_disk_or_an_io_error_ends_goes_on_to_the_same_bits_and_others_are_told(tmp_path):
    program = faults.Program("fork", tmp_path / "fork" / "runs")
    cases = [
        ("rename", "a/checkpoint_previous.pt", "SIGKILL"),
        ("write", "a/checkpoint.pt.part", "ENOSPC"),
        ("openat of events", faults.EVENTS, "ENOSPC"),
        ("fsync", "a/summary.json.part", "EIO"),
    ]
    for call, file, fault in cases:
        number = next(n for (name, n), paths in program.calls.items() if name == call and paths[-1] == program.runs / file)
        assert program.disturb(call, number, fault) == "same"
    program.undisturbed["a"]["model.pt"] += b"."
    assert program.disturb("fsync", 1, "EIO") == "different"
