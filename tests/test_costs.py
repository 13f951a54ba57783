"""Tables and figure of what pruned networks cost, from the rows that evals.efficiency measured."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis import costs
from prune_utils.storage import storage_bytes

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "results" / "efficiency.csv"


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["costs", *map(str, words)])
    costs.main()


def test_the_formats_are_those_that_every_run_measures():
    assert {"dense", *costs.FORMATS} == storage_bytes({"w": torch.ones(2, 2)}).keys()


def test_the_measured_rows_of_the_results_make_a_table_of_all_and_one_of_what_pays(tmp_path):
    call = [sys.executable, "-m", "analysis.costs", str(MEASURED), f"--figure={tmp_path / 'costs.png'}"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows, lines = pd.read_csv(MEASURED), done.stdout.splitlines()
    assert lines[0].startswith("Intel(R) Xeon(R) Processor @ 2.80GHz, torch 2.13.0+cpu")
    first, second = done.stdout.split("\n\n")[1:3]
    assert len(first.strip().splitlines()) == 2 + len(rows) and "| ppo random-0.95 | 0.95 | csr | 965 | 960 |" in first
    assert "| file as coo | 0.81 | 0.81 | 0.81 | 0.81 |" in second
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def made_up(*arms: tuple[str, str, float, int, float], device: str = "a CPU") -> pd.DataFrame:
    """Rows of arms: name, criterion, sparsity, bytes of COO (dense 1000), latency of CSR (dense 10)."""
    rows = []
    for arm, prune_type, sparsity, coo, latency in arms:
        row = {"run": arm, "file": "a.csv", "algorithm": "dqn", "arm": arm, "seed": 1, "prune_type": prune_type}
        row |= {"sparsity": sparsity, "device": device, "torch": "2"}
        row |= {f"{name}_bytes": 500 for name in costs.FORMATS} | {"coo_bytes": coo, "dense_bytes": 1000}
        row |= {"file_bytes": 1000, "resident_bytes": 1000, "load_ms": 1.0, "units": 9, "multiply_adds": 10**6}
        for form, us in (("dense", 10.0), ("csr", latency), ("without_dead_units", 9.0)):
            rows.append(row | {"form": form, "us_1x1": us, "us_1x1_q25": us - 1, "us_1x1_q75": us + 1})
    return pd.DataFrame(rows)


def test_what_pays_is_read_off_straight_lines_between_the_measured_sparsities():
    arms = [("none", "none", 0.0, 5000, 30.0), ("l1-0.5", "l1", 0.5, 3000, 20.0), ("l1-0.8", "l1", 0.8, 500, 12.0)]
    # COO: from 3 times dense at .5 to half of it at .8, so 1 at .5 + .3 * 2 / 2.5 = .74; CSR never falls below 1
    table = costs.crossings(made_up(*arms))
    assert "| smaller or faster than dense from this sparsity on | dqn, l1 |" in table
    assert "| file as coo | 0.74 |" in table and "| file as packed | 0.00 |" in table
    assert "| CSR layers, batch 1, 1 thread | above 0.80, if at all |" in table
    assert "| file as packed | 0.50 or less |" in costs.crossings(made_up(*arms[1:]))
    both = pd.concat([made_up(*arms), made_up(*arms, device="a GPU")])
    assert "| dqn, l1, a CPU | dqn, l1, a GPU |" in costs.crossings(both)
    one, other = made_up(*arms), made_up(*arms, device="a GPU").rename(columns={"us_1x1": "us_1x4"})
    told = costs.crossings(pd.concat([one, other]))  # what a device did not measure is a dash, and no "always faster"
    assert "| CSR layers, batch 1, 1 thread | above 0.80, if at all | - |" in told
    assert "| CSR layers, batch 1, 4 threads | - | above 0.80, if at all |" in told


def test_runs_whose_units_were_removed_are_not_compared_with_their_own_smaller_network(tmp_path):
    arms = [("none", "none", 0.0, 5000, 30.0), ("l1-0.5", "l1", 0.5, 3000, 20.0), ("l1-s", "l1-structured", 0.7, 400, 9.0)]
    assert list(costs.curves(made_up(*arms))) == ["dqn, l1"]
    costs.draw(made_up(*arms[::2]), tmp_path / "a.svg")
    assert "file of none arms / dense file" in (tmp_path / "a.svg").read_text()


def test_shares_are_of_the_dense_form_of_the_same_run_before_the_median_over_runs_is_taken():
    slow, fast = ("slow", "l1", 0.5, 3000, 20.0), ("fast", "l1", 0.5, 3000, 12.0)
    rows = made_up(slow, fast)
    rows.loc[rows.run == "slow", "us_1x1"] *= 10  # of the medians: 106 / 55 = 1.93
    assert costs.latency_shares(rows, "csr", "us_1x1").tolist() == [1.6]  # 200 / 100 and 12 / 10
    rows.loc[rows.run == "slow", ["coo_bytes", "dense_bytes"]] = 6000, 10_000  # of the medians: 4500 / 5500 = 0.82
    assert costs.file_shares(rows, "coo").tolist() == [1.8]  # 0.6 and 3


@pytest.mark.parametrize("criteria", [["none"], ["none", "random"], ["none", "l1", "random"]])
def test_a_figure_is_drawn_of_whichever_arms_there_are_the_same_each_time(criteria, tmp_path, monkeypatch, capsys):
    arms = [(kind, kind, 0.5 if kind != "none" else 0.0, 3000, 20.0) for kind in criteria]
    made_up(*arms).to_csv(tmp_path / "costs.csv", index=False)
    for name in ("a.png", "b.png"):
        run(monkeypatch, tmp_path / "costs.csv", f"--figure={tmp_path / name}")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert ("no run with pruned entries: no crossing to show" in capsys.readouterr().out) == (criteria == ["none"])


def test_rows_of_several_files_make_one_table(tmp_path, monkeypatch, capsys):
    for seed, coo in enumerate((400, 600, 5000)):
        made_up(("none", "none", 0.0, 5000, 30.0), ("l1-0.5", "l1", 0.5, coo, 20.0)).to_csv(tmp_path / f"{seed}.csv")
    run(monkeypatch, *sorted(tmp_path.glob("*.csv")))
    # the median of the three is .6 of the dense file: 1 at .5 * 4 / 4.4 = .45
    assert "| file as coo | 0.45 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "CSV must be at least one file that evals.efficiency wrote, got none"),
        (["nowhere.csv"], "CSV must be a file that evals.efficiency wrote, got nowhere.csv: [Errno 2]"),
        (["strange.csv"], "CSV must be a file that evals.efficiency wrote, got strange.csv: it lacks rows, columns or values"),
        (["short.csv"], "CSV must be a file that evals.efficiency wrote, got short.csv: it lacks rows, columns or values"),
        (["empty.csv"], "CSV must be a file that evals.efficiency wrote, got empty.csv: it lacks rows, columns or values"),
        (["medians.csv"], "CSV must be a file that evals.efficiency wrote, got medians.csv: it lacks rows, columns or values"),
        (["twice.csv"], "CSV must hold each run once, got twice.csv: runs of equal name, arm and seed need a file each"),
        (["forms.csv"], "CSV must have the form dense of each run, got forms.csv"),
        (
            ["kinds.csv"],
            "CSV must have runs of prune_type none, l1, random, l1-structured, random-structured, got magic: kinds.csv",
        ),
        (["gaps.csv"], "CSV must be a file that evals.efficiency wrote, got gaps.csv: it lacks rows, columns or values"),
        (["words.csv"], "CSV must be a file that evals.efficiency wrote, got words.csv: Unable to parse string"),
        (["nothing.csv"], "CSV must be a file that evals.efficiency wrote, got nothing.csv: No columns"),
        (["good.csv", "--figure=a.doc"], "--figure must end in .png or .svg, got a.doc"),
        (["good.csv", "--figure=nowhere/a.png"], "--figure must be a file in a folder that can be written, got nowhere/a.png"),
    ],
)
def test_a_file_that_is_no_such_table_is_one_line_and_exit_2(words, message, tmp_path, monkeypatch, capsys):
    good = made_up(("none", "none", 0.0, 5000, 30.0))
    good.to_csv(tmp_path / "good.csv", index=False)
    good[:0].to_csv(tmp_path / "empty.csv", index=False)
    good.drop(columns="load_ms").to_csv(tmp_path / "short.csv", index=False)
    good.drop(columns="us_1x1_q25").to_csv(tmp_path / "medians.csv", index=False)
    pd.concat([good, good]).to_csv(tmp_path / "twice.csv", index=False)
    good[good.form != "dense"].to_csv(tmp_path / "forms.csv", index=False)
    good.assign(prune_type="magic").to_csv(tmp_path / "kinds.csv", index=False)
    good.assign(sparsity=[0.0, None, 0.0]).to_csv(tmp_path / "gaps.csv", index=False)
    good.assign(file_bytes="many").to_csv(tmp_path / "words.csv", index=False)
    (tmp_path / "strange.csv").write_text("a,b\n1,2\n")
    (tmp_path / "nothing.csv").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^2$"):
        run(monkeypatch, *words)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
