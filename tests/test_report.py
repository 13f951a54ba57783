"""The report: what it counts, names and concludes, and that its numbers are those of the run folders."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import figures, report
from analysis.design import DESIGN
from analysis.measures import alike
from analysis.runs import collect
from analysis.studies import KINDS, build, group
from prune_utils.basics import UserError
from prune_utils.run import NEUTRAL
from tests.conftest import SCRIPTS, rows, summary
from tests.run_folders import DENSE, L1, NO_SKILL, conclude, named, row, study, text, write_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def only_numbers(request, monkeypatch):
    """Figures take seconds: tests that do not ask for them (`drawn`) go without."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "draw", lambda *_: [])


@pytest.fixture
def drawn():
    """Draw the figures too."""


# ---------------------------------------------------------------------------------------------------------------- numbers
def test_arms_and_their_paired_differences_are_counted_over_seeds_by_hand(tmp_path):
    tables = conclude(study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1, "random-0.5": DENSE}))
    dense, l1 = row(tables["returns"], "none"), row(tables["changes"], "l1-0.5")
    assert (dense.seeds, dense.after_cut, dense.late, dense.final, dense.role) == (3, 110, 110, 110, "dense")
    # deviation 10; t(2, 97.5 %) = 4.302653; 4.302653 * 10 / sqrt(3) = 24.841378
    assert (dense.after_cut_low, dense.after_cut_high) == pytest.approx((110 - 24.841378, 110 + 24.841378))
    # -10 -5 -24: mean -13, deviation sqrt((9 + 64 + 121) / 2) = 9.848858; * 4.302653 / sqrt(3) = 24.465919
    assert (l1.pairs, l1.after_cut_points, l1.role) == (3, -13, "declared")
    assert (l1.after_cut_points_low, l1.after_cut_points_high) == pytest.approx((-13 - 24.465919, -13 + 24.465919))
    assert l1.after_cut == l1.late == l1.final == pytest.approx(-13 / 110)
    assert row(tables["changes"], "random-0.5").role == "exploratory"


def test_the_four_quantities_of_a_run_by_hand(tmp_path):
    # tenths of 100 steps after the cut at 1000; 3 short games of 0 in the first, one game of 10, 20, ... in each of the others
    training = [(500, 50.0), (1010, 0.0), (1020, 0.0), (1030, 0.0), *((1000 + 100 * k, 10.0 * k) for k in range(2, 11))]
    other = [(500, 50.0), *((1000 + 100 * k, 40.0) for k in range(1, 11))]
    scores = {"before": [60.0, 40.0], "after": [10.0, 30.0]}
    write_run(tmp_path / "runs", training=other, final=[80.0], **scores)
    write_run(tmp_path / "runs", arm="l1-0.5", training=training, final=[100.0], **scores)
    half = row(conclude(tmp_path / "runs")["changes"], "l1-0.5")
    assert half.after_cut_points == pytest.approx(54 - 40)  # (0 + 20 + ... + 100) / 10: bins count alike, not games
    assert half.late_points == 100 - 40 and half.final == 100 / 80 - 1 and half.shock == pytest.approx(20 / 50 - 1)


def test_more_games_and_more_arms_do_not_make_more_seeds(tmp_path):
    few = conclude(study(tmp_path / "few", {"none": DENSE, "l1-0.5": L1}))["changes"]
    for arm, means in {"none": DENSE, "l1-0.5": L1}.items():
        for seed, mean in enumerate(means, 1):
            write_run(tmp_path / "many", "dqn", arm, seed, final=[mean - 10, mean + 10] * 50, score=mean)
    study(tmp_path / "many", {"random-0.5": L1, "l1-0.3": L1}, after=[90.0, 100.0] * 50, final=[90.0, 100.0] * 50)
    many = conclude(tmp_path / "many")["changes"]
    for key in ("pairs", "after_cut", "after_cut_low", "after_cut_high", "final", "final_low", "final_high"):
        assert row(many, "l1-0.5")[key] == pytest.approx(row(few, "l1-0.5")[key], nan_ok=False)


def test_the_recovery_of_the_run_folders_is_in_the_table_and_never_is_no_number(tmp_path):
    # 4 games up to the cut at 1000, level 10; after it as in tests/test_paired.py, steps * 10
    steps, fell = [700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1500], [5, 5, 10, 10]
    write_run(tmp_path / "runs", training=list(zip(steps, [*fell, 10, 10, 10, 10, 10], strict=True)))
    write_run(tmp_path / "runs", arm="l1-0.5", training=list(zip(steps, [*fell, 4, 6, 9, 11, 20], strict=True)))
    write_run(tmp_path / "runs", arm="l1-0.8", training=list(zip(steps, [*fell, 8, 8, 8, 8, 8], strict=True)))
    write_run(tmp_path / "runs", arm="l1-0.9", training=list(zip(steps[:5], [*fell, 8], strict=True)))
    table = conclude(tmp_path / "runs", window=2)["recovery"]
    back, never = row(table, "l1-0.5"), row(table, "l1-0.8")
    assert (back.level, back.back, back.steps_until_back, back.area, back.seeds) == (10, 1, 400, 1350, 1)
    assert back.area_share == pytest.approx(1350 / (10 * 1000))
    assert (never.back, never.steps_until_back, never.area) == (0, np.inf, 1000)
    shown = (tmp_path / "report of runs" / "recovery.md").read_text().splitlines()
    assert sum("never" in line for line in shown) == 2
    write_run(tmp_path / "runs", arm="l1-0.5-fork1", training=list(zip(steps, [*fell, 8, 8, 8, 8, 8], strict=True)))
    forked = row(conclude(tmp_path / "runs", window=2)["recovery"], "l1-0.5")
    assert (forked.seeds, forked.back, forked.steps_until_back, forked.area) == (1, 0, np.inf, 1175)  # a fork never is
    stuck = row(table, "l1-0.9")  # one game after the cut, where its twin has five
    assert (stuck.seeds, stuck.back, stuck.steps_until_back) == (1, 0, np.inf) and np.isnan(stuck.area)
    for arm in ("none", "l1-0.5"):  # with one game each there is nothing to judge, and no row of 0 seeds
        write_run(tmp_path / "short", arm=arm, training=list(zip(steps[:5], [*fell, 8], strict=True)))
    assert "recovery" not in conclude(tmp_path / "short", window=2)


def test_scores_are_written_as_rliable_takes_them_seeds_by_games(tmp_path):
    runs = tmp_path / "runs"
    study(runs, {"none": [1.0, 2.0], "l1-0.5": [5.0, 6.0]}, env_id="BreakoutNoFrameskip-v4")
    study(runs, {"none": [3.0, 4.0, 9.0], "l1-0.5": [7.0, 8.0]}, env_id="PongNoFrameskip-v4")
    tables = conclude(runs)
    scores = {name: array.tolist() for name, array in np.load(tmp_path / "report of runs" / "scores.npz").items()}
    assert scores == {"DQN, none": [[1, 3], [2, 4]], "DQN, l1-0.5": [[5, 7], [6, 8]]}  # a seed that one game lacks is left out
    assert tables["runs"].after_cut.tolist() == [1, 2, 5, 6, 3, 4, 9, 7, 8]  # and is in the table of runs


def test_over_several_games_a_seed_is_one_cluster(tmp_path):
    runs = tmp_path / "runs"
    for env_id, dense, half in (("Breakout", [2.0, 2.0, 2.0], [3.0, 2.0, 1.0]), ("Pong", [10.0] * 3, [15.0, 12.0, 6.0])):
        study(runs, {"none": dense, "l1-0.5": half}, env_id=f"{env_id}NoFrameskip-v4")
    (aggregate,) = (r for _, r in conclude(runs)["aggregate"].iterrows())
    # changes .5 0 -.5 and .5 .2 -.4; of two games nothing is trimmed: .5 .1 -.45; mean .05, squares .2025 .0025 .25
    assert (aggregate.arm, aggregate.games, aggregate.seeds, aggregate.iqm) == ("l1-0.5", 2, 3, pytest.approx(0.05))
    assert aggregate.iqm_high == pytest.approx(0.05 + 4.302653 * np.sqrt(0.455 / 2 / 3))
    assert "## Over several games: DQN, BreakoutNoFrameskip-v4; DQN, PongNoFrameskip-v4" in text(tmp_path / "report of runs")


def test_a_game_or_a_seed_in_which_an_arm_is_stuck_is_named_beside_the_mean_over_games_and_in_scores(tmp_path):
    for env_id in ("BreakoutNoFrameskip-v4", "PongNoFrameskip-v4", "SeaquestNoFrameskip-v4"):
        study(tmp_path / "runs", {"none": [90.0, 100.0, 110.0]}, env_id=env_id)
        for seed, score in enumerate((80.0, 85.0, 100.0), 1):
            stuck = env_id.startswith("Breakout") or (env_id.startswith("Pong") and seed == 2)
            past = [(step, 100.0 + seed) for step in range(10, 1001, 10)]
            after = [] if stuck else [(step, score) for step in range(1010, 2001, 10)]
            write_run(tmp_path / "runs", arm="l1-0.5", seed=seed, training=past + after, env_id=env_id)
    (aggregate,) = (r for _, r in conclude(tmp_path / "runs")["aggregate"].iterrows())
    assert (aggregate.games, aggregate.seeds) == (2, 2)
    assert aggregate.left_out == "BreakoutNoFrameskip-v4, seed 2 of PongNoFrameskip-v4"
    scores = {name: array.shape for name, array in np.load(tmp_path / "report of runs" / "scores.npz").items()}
    assert scores == {"DQN, none": (3, 3), "DQN, l1-0.5 without BreakoutNoFrameskip-v4": (2, 2)}


def test_a_game_whose_returns_are_not_all_above_0_has_no_share_in_the_mean_over_games(tmp_path):
    for env_id, dense in (("Breakout", [2.0, 3.0, 3.0]), ("BattleZone", [5.0, 7.0, 6.0]), ("Pong", [-2.0, 3.0, 1.0])):
        study(tmp_path / "runs", {"none": dense, "l1-0.5": dense[::-1]}, env_id=f"{env_id}NoFrameskip-v4")
    tables = conclude(tmp_path / "runs")
    assert tables["aggregate"].games.tolist() == [2]
    told = ", the mean over games of each seed, without PongNoFrameskip-v4, where returns are missing or not all above 0."
    assert told in text(tmp_path / "report of runs")
    assert not tables["noise"].study.str.contains("Pong").any()


def test_the_trend_is_a_slope_over_rates_of_the_seeds_that_have_them_all_and_positive_controls_are_no_part_of_it(tmp_path):
    arms = {"none": [100.0, 120.0], "l1-0.1": [98.0, 118.0, 50.0], "l1-0.5": [90.0, 108.0], "random-0.3": [90.0, 110.0]}
    (trend,) = (r for _, r in conclude(study(tmp_path / "runs", arms))["trend"].iterrows())
    assert (trend.criterion, trend.rates, trend.pairs, trend.role) == ("l1", "0 0.1 0.5", 2, "exploratory")
    # centred rates -.2 -.1 .3, their squares add up to .14; seed 1: -20 per unit of rate; seed 2: (-24 - 11.8 + 32.4) / .14
    slope = pytest.approx((-20 - 3.4 / 0.14) / 2 / 10)
    assert trend.simultaneous_points == slope and trend.simultaneous == pytest.approx((-2 - 0.34 / 0.14) / 2 / 110)
    # a positive control is no part of it, and a rate that only some seeds have costs itself, not the others
    study(tmp_path / "runs", {"l1-0.05": [99.0], "l1-0.9": [3.0], "l1-0.95": [2.0, 1.0]})
    tables = conclude(tmp_path / "runs")
    (again,) = (r for _, r in tables["trend"].iterrows())
    assert (again.rates, again.pairs, again.simultaneous_points) == ("0 0.1 0.5", 2, slope)
    assert row(tables["changes"], "l1-0.95").role == "positive control"
    told = text(tmp_path / "report of runs")
    assert "Exploratory, trend of l1 over 0 0.1 0.5 per 0.1 of rate: " in told and "Positive control: l1 at 0.95: " in told


def test_the_rates_of_a_trend_are_those_that_the_most_seeds_have_in_common(tmp_path):
    runs = study(tmp_path / "runs", {"none": [100.0] * 6, "l1-0.1": L1, "l1-0.3": L1})
    for seed in (3, 4, 5, 6):  # as many seeds as the others have, but one in common
        write_run(runs, arm="l1-0.7", seed=seed, score=50.0)
    (trend,) = (r for _, r in conclude(runs)["trend"].iterrows())
    assert (trend.rates, trend.pairs) == ("0 0.1 0.3", 3)


def test_the_change_in_each_tenth_after_the_cut_is_in_a_table_of_its_own(tmp_path):
    for seed in (1, 2, 3):
        games = [(500, 7.0), *((1000 + 100 * k, 10.0) for k in range(1, 11))]
        write_run(tmp_path / "runs", seed=seed, training=games)
        pruned = [(500, 7.0), *((1000 + 100 * k, k + (seed if k == 2 else 0.0)) for k in range(1, 11))]
        write_run(tmp_path / "runs", arm="l1-0.5", seed=seed, training=pruned)
    table = conclude(tmp_path / "runs")["bins"]
    half = table[table.arm == "l1-0.5"].set_index("bin")
    assert half["mean"].tolist() == [1, 4, *range(3, 11)] and half.change[10] == 0 and half.change[2] == pytest.approx(-0.6)
    # 3 4 5 against 10: deviation 1; 0.4302653 / sqrt(3)
    assert half.change_high[2] == pytest.approx(-0.6 + 0.4302653 / np.sqrt(3)) and np.isnan(half.change_high[1])


# ----------------------------------------------------------------------------------------------------- what is not a number
def torn(folder: Path, name: str, keep: float = 0.5) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])


def short(folder: Path) -> None:
    lines = (folder / "eval.csv").read_text().splitlines(keepends=True)
    (folder / "eval.csv").write_text("".join(lines[:-1]))


def change_config(folder: Path, part: str, *without: str, **values) -> None:
    """Take some options or resolved values out of config.json, or put others in."""
    config = json.loads((folder / "config.json").read_text())
    config[part] = {name: value for name, value in config[part].items() if name not in without} | values
    (folder / "config.json").write_text(json.dumps(config))


def change_summary(folder: Path, *path: str, value) -> None:
    """Give an entry of summary.json, which may lie in others, another value."""
    told = summary(folder)
    *above, name = path
    part = told
    for key in above:
        part = part[key]
    part[name] = value
    (folder / "summary.json").write_text(json.dumps(told))


def change_curve(folder: Path, row: str, value: str) -> None:
    """Give a row of curves.csv, named by its step and tag, another value."""
    text = (folder / "curves.csv").read_text()
    (folder / "curves.csv").write_text(re.sub(f"(?m)^{row},.*$", f"{row},{value}", text))


BREAK = {
    "config.json cannot be read (JSONDecodeError": lambda folder: torn(folder, "config.json"),
    "config.json cannot be read (TypeError": lambda folder: (folder / "config.json").write_text("[]"),
    "config.json cannot be read (KeyError: 'resolved')": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"resolved"', '"solved"')
    ),
    "config.json cannot be read (KeyError: 'device_name')": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"device_name"', '"machine"')
    ),
    "config.json is missing": lambda folder: (folder / "config.json").unlink(),
    "summary.json cannot be read (JSONDecodeError": lambda folder: torn(folder, "summary.json"),
    "summary.json cannot be read (KeyError: 'algorithm')": lambda folder: (folder / "summary.json").write_text("{}"),
    "summary.json has seed 1, config.json 2": lambda folder: shutil.copy(
        next(folder.parent.glob("*none__s1*")) / "summary.json", folder
    ),
    "eval.csv is missing": lambda folder: (folder / "eval.csv").unlink(),
    "eval.csv cannot be read (ValueError: Usecols": lambda folder: (folder / "eval.csv").write_text(
        (folder / "eval.csv").read_text().replace("length", "steps")
    ),
    "eval.csv has 1 games final, summary.json 2": short,
    "eval.csv has an empty cell": lambda folder: (folder / "eval.csv").write_text(
        (folder / "eval.csv").read_text().replace(",500,", ",,", 1)
    ),
    "eval.csv has a mean of": lambda folder: (folder / "eval.csv").write_text(
        (folder / "eval.csv").read_text().replace("120.0", "12.0")
    ),
    "config.json has no option seed": lambda folder: change_config(folder, "options", "seed"),
    "config.json has no option prune_rate": lambda folder: change_config(folder, "options", "prune_rate"),
    "config.json has the total_timesteps None": lambda folder: change_config(folder, "options", total_timesteps=None),
    "config.json has the prune_type 1": lambda folder: change_config(folder, "options", prune_type=1),
    "config.json has the versions 'numpy 2'": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('{"numpy": "2.4.6"}', '"numpy 2"')
    ),
    "summary.json has peak_ram_bytes '1 GB'": lambda folder: change_summary(folder, "time", "peak_ram_bytes", value="1 GB"),
    "summary.json has dense []": lambda folder: change_summary(folder, "multiply_adds", "dense", value=[]),
    "summary.json has pruned None": lambda folder: change_summary(folder, "pruned", value=None),
    "summary.json has emptied ['x']": lambda folder: change_summary(folder, "emptied", value=["x"]),
    "summary.json has 10,010 entries, and its tensors 10,015": lambda folder: change_summary(
        folder, "tensors", "fc1.bias", "total", value=15
    ),
    "summary.json has final commonest_action_share 'all'": lambda folder: change_summary(
        folder, "eval", "final", "commonest_action_share", value="all"
    ),
    "summary.json has final health effective_rank 'low'": lambda folder: change_summary(
        folder, "eval", "final", "health", value={"effective_rank": "low"}
    ),
    "summary.json cannot be read (TypeError": lambda folder: change_summary(folder, "multiply_adds", value=None),
    "curves.csv has charts/episodic_return inf at step 500": lambda folder: change_curve(
        folder, "500,charts/episodic_return", "inf"
    ),
    "curves.csv has losses/td_loss nan at step 1,500": lambda folder: change_curve(folder, "1500,losses/td_loss", "nan"),
    "config.json has no resolved precision": lambda folder: change_config(folder, "resolved", "precision"),
    "config.json has the fork_seed 'one'": lambda folder: change_config(folder, "options", fork_seed="one"),
    "curves.csv has no row prune/sparsity": lambda folder: (folder / "curves.csv").write_text(
        (folder / "curves.csv").read_text().replace("prune/sparsity", "prune/density")
    ),
    "curves.csv is missing": lambda folder: (folder / "curves.csv").unlink(),
    "curves.csv ends before the run did": lambda folder: torn(folder, "curves.csv"),
    "curves.csv cannot be read (BadGzipFile": lambda folder: (folder / "curves.csv").rename(folder / "curves.csv.gz"),
}


@pytest.mark.parametrize("reason", BREAK)
def test_a_broken_file_is_named_and_its_run_is_neither_a_zero_nor_dropped_silently(reason, tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    (folder,) = (tmp_path / "runs").glob("*none__s2*")
    BREAK[reason](folder)
    tables = conclude(tmp_path / "runs")
    assert reason in named(tables)[folder.name] and named(tables)[folder.name].startswith("broken: ")
    assert row(tables["returns"], "none").seeds == 2 and row(tables["returns"], "none").after_cut == 110
    assert row(tables["changes"], "l1-0.5").pairs == row(tables["returns"], "l1-0.5").seeds == 2  # as of dense
    assert f"broken: {folder.name}" in text(tmp_path / "report of runs")


def test_the_explained_variance_of_returns_that_are_all_the_same_may_be_undefined(tmp_path):
    for folder in study(tmp_path / "runs", {"none": DENSE[:1], "l1-0.5": L1[:1]}, "ppo").iterdir():
        change_curve(folder, "500,losses/explained_variance", "-inf")
        change_curve(folder, "1500,losses/explained_variance", "nan")
    assert "named" not in conclude(tmp_path / "runs")


def test_runs_that_the_analysis_does_not_know_are_named_and_the_others_are_reported(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1, "random-0.5": L1})
    criterion, algorithm = (next((tmp_path / "runs").glob(f"*{arm}__s1*")) for arm in ("l1-0.5", "random-0.5"))
    change_config(criterion, "options", prune_type="movement")
    config = algorithm / "config.json"
    config.write_text(config.read_text().replace('"algorithm": "dqn"', '"algorithm": "sac"'))
    tables = conclude(tmp_path / "runs")
    assert named(tables)[criterion.name] == "unknown: the analysis knows no prune_type movement"
    assert named(tables)[algorithm.name] == "unknown: the analysis knows no algorithm sac"
    assert dict(zip(tables["changes"].arm, tables["changes"].pairs, strict=True)) == {"l1-0.5": 2, "random-0.5": 2}


def test_every_arm_that_the_analysis_knows_has_a_colour_and_a_marker():
    assert figures.COLOURS.keys() == figures.MARKERS.keys() == set(KINDS)


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_the_declared_design_is_the_defaults_of_the_script(algorithm):
    defaults = {option.name: option.default for option in fields(SCRIPTS[algorithm].Args)}
    machine, own = {"precision", "num_threads"}, {"seed", "prune_type", "prune_rate"}
    shaping = {name: value for name, value in defaults.items() if name not in NEUTRAL | machine | own}
    assert DESIGN[algorithm] == shaping | {"exp_name": f"{algorithm}_atari_prune"}


def test_an_option_that_a_run_of_an_earlier_version_lacks_has_its_default(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    for folder in (tmp_path / "runs").glob("*l1-0.5*"):
        change_config(folder, "options", "fork_seed", "prune_scope", "hidden_size", "batch_size", "track")
    tables = conclude(tmp_path / "runs")
    assert row(tables["changes"], "l1-0.5").pairs == 3 and "named" not in tables
    for folder in (tmp_path / "runs").glob("*none*"):
        change_config(folder, "options", batch_size=64)
    tables = conclude(tmp_path / "runs")
    assert "changes" not in tables
    assert sum(reason.endswith("batch_size 64 -> 32") for reason in named(tables).values()) == 3


def test_a_truncated_gzip_file_is_named(tmp_path):
    study(tmp_path / "runs", {"none": DENSE}, compress=True)
    torn(next((tmp_path / "runs").glob("*none__s2*")), "curves.csv.gz")
    assert "cannot be read (EOFError" in str(named(conclude(tmp_path / "runs")))


def test_unfinished_failed_missing_and_empty_runs_are_named_with_how_far_they_came(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:1]})
    going = write_run(runs, arm="l1-0.5", seed=2, finished=False)
    torn(going, "curves.csv", 0.8)
    failed = write_run(runs, arm="l1-0.5", seed=3, finished=False)
    (runs / f"{failed.name}.log").write_text("step 100\nerror: [Errno 28] No space left on device\n\n")
    (failed / "curves.csv").unlink()
    (runs / "begun").mkdir()
    (runs / "begun" / ".lock").touch()
    (runs / "x__dqn_atari_prune__l1-0.3__s1.log").write_text("Traceback (most recent call last):\nKilled\n")
    study(runs, {"random-0.3": DENSE[:2]})
    tables = conclude(runs)
    told = named(tables)
    assert re.fullmatch(r"unfinished: no summary.json, at agent step 1,[567]\d\d of 2,000,000", told[going.name])
    assert told[failed.name].startswith("failed: no summary.json, ") and "No space left on device" in told[failed.name]
    assert told["begun"].startswith("empty: ")
    assert told["x__dqn_atari_prune__l1-0.3__s1"] == "failed: it left no run folder; its log ends: Killed"
    missing = [reason for name, reason in told.items() if "random-0.3" in name]
    assert missing == ["missing: no run of seed 3; seeds 1, 2, 3 are in the study"] and len(told) == 5
    assert (row(tables["returns"], "l1-0.5").seeds, row(tables["changes"], "random-0.3").pairs) == (1, 2)


def test_a_single_run_without_evaluation_games_is_reported_with_what_it_has(tmp_path, drawn):
    folder = write_run(tmp_path / "runs", arm="l1-0.5")
    told = summary(folder)
    del told["eval"]
    (folder / "summary.json").write_text(json.dumps(told))
    (folder / "eval.csv").unlink()
    tables = conclude(folder)
    told = f"not evaluated: {folder.name}: it played no evaluation games, so it has training returns only"
    assert told in text(folder.parent / f"report of {folder.name}") and tables["costs"].total.tolist() == [10010]
    assert "final" not in tables["returns"] and (folder.parent / f"report of {folder.name}" / "bytes.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "RUNS must hold a finished run, got nothing"),
        (["{empty}"], "RUNS must hold a finished run, got "),
        (["{unfinished}"], "RUNS must hold a finished run, got "),
        (["{nowhere}"], "RUNS must be folders that exist, got "),
        (["{runs}", "--window", "0"], "--window must be at least 1 and below 2**31, got 0"),
        (["{runs}", "--no-skill", "{nowhere}"], "--no-skill must be a file that exists, got "),
        (["{runs}", "--out", "{runs}"], "--out must be new, empty or an earlier report, got "),
        (["{runs}", "--out", "{file}"], "--out must be a folder that can be written, got "),
    ],
)
def test_what_a_user_mistypes_is_one_line_and_exit_2_and_nothing_is_written(words, told, tmp_path, monkeypatch, capsys):
    for name in ("empty", "unfinished", "runs"):
        (tmp_path / name).mkdir()
    write_run(tmp_path / "unfinished", finished=False)
    write_run(tmp_path / "runs")
    (tmp_path / "file").write_text("x")
    places = {name: tmp_path / name for name in ("empty", "unfinished", "runs", "nowhere", "file")}
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["analysis", f"--out={tmp_path / 'out'}", *(word.format(**places) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    err = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and err[-1].startswith(f"error: {told}") and sorted(tmp_path.rglob("*")) == before
    assert all(line.startswith(("unfinished: ", "empty: ")) for line in err[:-1])


# ----------------------------------------------------------------------------------------------------------------- output
def test_the_same_bytes_come_from_run_folders_and_from_their_packed_copies(tmp_path, drawn):
    runs, packed = tmp_path / "runs", tmp_path / "results" / "study"
    study(runs, {"none": [100.0, 90.0], "none-fork1": [95.0], "l1-0.5": [90.0, 95.0], "random-0.8": [80.0]})
    study(runs, {"l1-0.5": [85.0], "l1-0.8": [70.0]}, prune_scope="global")  # a third criterion
    study(runs, {"none": [70.0]}, hidden_size=83)
    study(runs, {"l1-structured-0.5": [80.0, 75.0]})
    for folder in runs.iterdir():
        shutil.copytree(folder, packed / folder.name, ignore=shutil.ignore_patterns("curves.csv"))
        (packed / folder.name / "curves.csv.gz").write_bytes(gzip.compress((folder / "curves.csv").read_bytes()))
    made = {place: tmp_path / f"report of {place.parent.name}" for place in (runs, packed)}
    for place, out in made.items():
        conclude(place, out=out)
    files = {file.name: file.read_bytes() for file in made[runs].iterdir()}
    assert files == {file.name: file.read_bytes() for file in made[packed].iterdir()}
    kinds = "headline difference return_against_rate size change_against_rate moments sparsity bytes speed training losses"
    for kind in kinds.split():
        assert {Path(name).suffix for name in files if name.startswith(kind)} == {".png", ".svg"}
    for table in ("changes", "returns", "evaluations", "noise", "bins", "recovery", "costs", "runs", "no_skill"):
        assert f"{table}.md" in files and f"{table}.csv" in files


def test_a_report_of_a_real_pair_has_the_numbers_of_its_run_folders_on_one_page_that_needs_nothing_else(
    small_run, tmp_path, drawn
):
    dense = small_run("ppo", prune_type="none")
    fork = small_run("ppo", "fork", prune_type="l1", prune_rate=0.5, fork_from=str(dense))
    words = [sys.executable, "-m", "analysis", str(dense), str(fork), f"--out={tmp_path / 'out'}", "--window=1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    tables = {file.stem: pd.read_csv(file) for file in (tmp_path / "out").glob("*.csv")}
    for arm, folder in {"none": dense, "l1-0.5": fork}.items():
        told, costs, returns = summary(folder), row(tables["costs"], arm), row(tables["returns"], arm)
        assert {key.removeprefix("disk_"): costs[key] for key in costs.index if key.startswith("disk_")} == told["disk"]
        assert (costs.total, costs.nonzero, costs.zeros) == (told["total"], told["nonzero"], told["total"] - told["nonzero"])
        assert (costs.multiply_adds_nonzero, costs.resident_bytes) == (told["multiply_adds"]["nonzero"], told["resident_bytes"])
        assert costs.peak_ram_bytes == told["time"]["peak_ram_bytes"]
        for moment, score in told["eval"].items():
            assert returns[moment] == pytest.approx(score["mean"])
            assert returns[moment] == np.mean([float(r["return"]) for r in rows(folder / "eval.csv") if r["moment"] == moment])
        shown = (tmp_path / "out" / "costs.md").read_text()
        assert all(f"{size:,}" in shown for size in told["disk"].values())
    assert row(tables["changes"], "l1-0.5").final == pytest.approx(
        row(tables["returns"], "l1-0.5").final / row(tables["returns"], "none").final - 1
    )
    assert "named" not in tables
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img ") == len(list((tmp_path / "out").glob("*.png"))) >= 6
    assert set(re.findall(r'(?:src|href)="([^"]{10})', page)) == {"data:image"} and "://" not in page
    assert (
        "These runs are not the declared study (" in page and "These runs are not" in done.stdout and "<h2>Method</h2>" in page
    )


def first_screen(out: Path) -> str:
    return (out / "index.html").read_text().split("<h2>Conclusions</h2>")[0]


def test_the_page_begins_with_the_answer_of_each_algorithm_what_no_skill_scores_and_one_figure_of_each(tmp_path, drawn):
    for algorithm in ("dqn", "ppo"):
        study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0], "l1-0.8": [80.0]}, algorithm)
    conclude(tmp_path / "runs")
    shown = first_screen(tmp_path / "report of runs")
    assert shown.count("<strong>No answer: 1 seed, 3 are needed</strong>") == 2
    assert shown.count("Return after the cut of l1 at 0.5: -10.0 % in one seed.") == 2
    assert shown.count("No skill in SpaceInvadersNoFrameskip-v4: uniform random play scores 30") == 1
    assert shown.count("<img ") == 2 and "width=device-width" in shown


def test_a_figure_with_nothing_in_it_is_left_out_and_the_page_says_why(tmp_path, drawn):
    training = [(500, 50.0), (1500, 60.0)]
    for arm in ("none", "l1-0.5"):
        write_run(tmp_path / "runs", arm=arm, training=training, log_every=3000)
    conclude(tmp_path / "runs")
    out = tmp_path / "report of runs"
    names = {file.name.split("_")[0].removesuffix(".png") for file in out.glob("*.png")}
    assert names == {"change", "moments", "sparsity", "bytes", "speed"}
    page = (out / "index.html").read_text()
    label = "DQN, SpaceInvadersNoFrameskip-v4"
    assert f"returns of {label}: no run has games in each tenth of the steps after the cut" in page
    assert f"training curves of {label}: fewer than 25 games" in page and f"losses of {label}: none were logged" in page


def test_axes_show_all_means_and_dots_and_cut_off_intervals_that_are_many_times_as_long():
    _, (long, short) = figures.plt.subplots(1, 2)
    long.errorbar([1, 2], [-0.1, 0.1], yerr=5, capsize=3)
    long.plot([1], [0.2], ".")
    long.axvline(1, label="cut")
    short.errorbar([1], [0.0], yerr=0.1)
    figures.cut_long_intervals([long, short])
    assert long.get_ylim() == short.get_ylim() == pytest.approx((-0.4, 0.5))  # from -0.1 to 0.2, and 0.3 on both sides
    figures.plt.close("all")


def test_negative_returns_are_in_the_figure_and_not_upside_down(tmp_path, drawn, monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "save", lambda figure, out, name: shown.setdefault(name, figure.axes[0].get_ylim()))
    for name, scores in (("low", [-20.0, -19.0, -18.0]), ("high", DENSE)):
        study(tmp_path / name, {"none": scores, "l1-0.5": scores}, training=[(10 * k, scores[0]) for k in range(1, 201)])
        conclude(tmp_path / name, no_skill=NO_SKILL.replace("SpaceInvaders", "Pong"))
        bottom, top = shown.pop(next(key for key in shown if key.startswith("headline")))
        assert bottom < scores[0] < top and (bottom == 0) == (name == "high")
        shown.clear()


def test_a_variant_has_another_marker_than_the_plain_cut_of_its_criterion(tmp_path):
    study(tmp_path / "runs", {"none": DENSE[:1], "l1-0.5": L1[:1], "random-0.5": L1[:1]})
    study(tmp_path / "runs", {"l1-0.5": L1[:1]}, prune_cuts=8)
    (made,) = group(collect((tmp_path / "runs",), 20)[0])
    build(made, made.runs, [])
    looks = figures.looks(made)
    assert looks["l1"]["color"] == looks["l1 in 8 cuts until 0.8"]["color"] != looks["random"]["color"]
    assert len({look["marker"] for look in looks.values()}) == 4


def test_a_seed_without_games_in_a_tenth_is_not_counted_and_named(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:2]})
    write_run(tmp_path / "runs", arm="l1-0.5", seed=3, training=[(step, 103.0) for step in range(10, 1901, 10)])
    tables = conclude(tmp_path / "runs")
    assert row(tables["returns"], "l1-0.5").seeds == 3 and row(tables["returns"], "l1-0.5").after_cut_seeds == 2
    assert set(tables["noise"].pairs) == {2}
    told = text(tmp_path / "report of runs")
    assert "No return after the cut of l1 at 0.5 (seed 3): no game ended in a tenth of the steps after the cut, because" in told


def test_a_mean_over_fewer_seeds_than_dense_is_hollow_and_no_line_leads_to_it(tmp_path, drawn, monkeypatch):
    markers, lines = [], []

    def look(figure, out, name):
        figures.plt.close(figure)
        if name == "return_against_rate":
            shown = [line for line in figure.axes[0].lines if len(line.get_xdata())]
            markers.extend(line.get_markerfacecolor() == "none" for line in shown if line.get_marker() == "o")
            lines.extend(list(line.get_xdata()) for line in shown if (line.get_linewidth(), line.get_alpha()) == (0.8, 0.6))

    study(tmp_path / "runs", {"none": DENSE, "l1-0.1": L1[:1], "l1-0.3": L1, "l1-0.5": L1, "l1-0.8": L1[:2]})
    stuck = [(step, 103.0 if step <= 1000 else 1.0) for step in range(10, 1801, 10)]
    write_run(tmp_path / "runs", arm="l1-0.8", seed=3, training=stuck)
    monkeypatch.setattr(figures, "save", look)
    conclude(tmp_path / "runs")
    assert markers == [True, False, False, True]  # of l1 at 0.8 one seed is stuck
    assert [0.3, 0.5] in lines and not any({0.1, 0.8} & set(line) for line in lines)


def test_the_headline_draws_dense_in_the_seeds_of_the_declared_arm(tmp_path, drawn, monkeypatch):
    shown = {}

    def look(figure, out, name):
        figures.plt.close(figure)
        if name.startswith("headline"):
            shown.update({line.get_label(): line.get_ydata()[-1] for line in figure.axes[0].lines})

    study(tmp_path / "runs", {"none": [100.0, 110.0, 600.0], "l1-0.5": [90.0, 99.0]})
    monkeypatch.setattr(figures, "save", look)
    conclude(tmp_path / "runs")
    assert (shown["dense"], shown["l1-0.5"]) == (105, 94.5)


def test_arms_of_one_size_are_those_within_a_distance_of_the_smallest():
    sizes = {"dense": 1.69, "l1": 0.42, "half": 0.83, "small": 0.421, "structured": 0.419, "other": 0.455}
    assert alike(sizes, 0.034) == [["structured", "l1", "small"], ["other"], ["half"], ["dense"]]
    assert alike({"0.99": 0.01, "0.98": 0.02}, 0.02) == [["0.99"], ["0.98"]]  # a share of the size, so twice is not the same


def test_a_curve_is_the_mean_of_the_last_rows_and_empty_before_there_are_half_of_them():
    games = np.array([500, 1000, 2000]), np.array([8.0, 4.0, 6.0])
    curve = figures.sampled(games, 2000, 3)  # a half of three is two
    assert len(curve) == figures.GRID and np.isnan(curve[99]) and (curve[100:199] == 6).all() and curve[199] == 6
    assert figures.sampled(games, 2000, 1)[[49, 50, 99, 100, 199]] == pytest.approx([np.nan, 8, 8, 4, 6], nan_ok=True)


def test_a_crossing_is_where_the_ratio_falls_below_1_for_good():
    # the line from 2.0 at 0.5 to 0.5 at 0.8 passes 1 at 0.5 + 0.3 * (2 - 1) / (2 - 0.5) = 0.7
    assert figures.crossing([0.0, 0.5, 0.8], [3.0, 2.0, 0.5]) == pytest.approx(0.7)
    assert figures.crossing([0.0, 0.5, 0.8, 0.9], [0.9, 1.0, 0.5, 0.4]) == pytest.approx(0.5)
    assert figures.crossing([0.0, 0.5], [0.9, 0.8]) == 0.0 and figures.crossing([0.0, 0.5], [0.9, 1.1]) is None


def test_a_new_report_replaces_an_earlier_one_and_leaves_nothing_of_it(tmp_path):
    study(tmp_path / "two", {"none": DENSE, "l1-0.5": L1, "l1-0.3": L1})
    study(tmp_path / "one", {"none": DENSE})
    out = tmp_path / "out"
    assert "trend" in conclude(tmp_path / "two", out=out)
    before = {file.name for file in out.iterdir()}
    assert "trend" not in conclude(tmp_path / "one", out=out)
    gone = {f"{table}.{suffix}" for table in ("changes", "noise", "trend") for suffix in ("csv", "md")}
    assert before - {file.name for file in out.iterdir()} == gone


def test_a_report_replaces_and_deletes_only_files_that_a_report_wrote(tmp_path, capsys):
    study(tmp_path / "two", {"none": DENSE, "l1-0.5": L1, "l1-0.3": L1})
    study(tmp_path / "one", {"none": DENSE})
    (folder := tmp_path / "one" / "folder").mkdir()
    (tmp_path / "out").mkdir()
    conclude(tmp_path / "one", out=folder)
    own = {"games.csv": "a", "notes.md": "b", "picture.png": "c", "trend.md": "d"}  # none of them is in a report of one arm
    for name, content in own.items():
        (folder / name).write_text(content)
    (tmp_path / "outside.csv").write_text("e")
    (folder / report.MANIFEST).write_text((folder / report.MANIFEST).read_text() + "../../outside.csv\n")
    conclude(tmp_path / "one", out=folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match=r"^--out must hold no trend.md but a report's, which would replace it, got "):
        conclude(tmp_path / "two", out=folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {name: (folder / name).read_text() for name in own} == own and (tmp_path / "outside.csv").read_text() == "e"


def test_a_report_that_was_interrupted_is_replaced_by_the_next_one(tmp_path, monkeypatch):
    study(tmp_path / "two", {"none": DENSE, "l1-0.5": L1, "l1-0.3": L1})
    study(tmp_path / "one", {"none": DENSE})
    out = tmp_path / "out"
    conclude(tmp_path / "one", out=out)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    copyfile, copies = shutil.copyfile, []

    def full_disk(source, target):
        if len(copies) == 5:
            raise OSError(28, "No space left on device")
        copies.append(copyfile(source, target))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(shutil, "copyfile", full_disk)
        conclude(tmp_path / "two", out=out)
    conclude(tmp_path / "one", out=out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def wandb_records(folder: Path) -> list[dict]:
    """What the W&B files in a folder hold, as the client itself reads them."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    files = sorted(folder.glob("wandb/*run-*"))
    done = [subprocess.run([*words, str(file)], capture_output=True, text=True) for file in files]
    return [json.loads(line) for process in done for line in process.stdout.splitlines()]


def test_a_tracked_report_logs_its_figures_and_tables_offline_and_an_untracked_one_does_not_know_wandb(tmp_path, drawn):
    study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0]})
    call = "import sys; from analysis import report; report.main(); assert ('wandb' in sys.modules) == ('--track' in sys.argv)"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    for words in ([], ["--track"]):
        command = [sys.executable, "-c", call, str(tmp_path / "runs"), f"--out={tmp_path / 'out'}", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
    assert "cannot reach W&B" in done.stderr
    records = wandb_records(tmp_path / "out")
    logged = json.dumps([record for record in records if record["type"] == "history"])
    for file in (tmp_path / "out").glob("*.png"):
        assert f"figures/{file.stem}" in logged
    for file in (tmp_path / "out").glob("*.csv"):
        assert f"tables/{file.stem}" in logged
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["job_type"] == "report"


def curves_of_figures(monkeypatch) -> dict[str, list[list[str]]]:
    """By figure, the labels of the curves in each of its facets, filled while a report is made."""
    save, shown = figures.save, {}

    def save_and_look(figure, out, name):
        shown[name] = [[line.get_label() for line in ax.lines if len(line.get_xdata()) == figures.GRID] for ax in figure.axes]
        save(figure, out, name)

    monkeypatch.setattr(figures, "save", save_and_look)
    return shown


def test_the_curve_of_an_a_a_arm_lies_beside_those_of_each_criterion(tmp_path, drawn, monkeypatch):
    study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0], "random-0.5": [80.0], "none-fork1": [104.0]})
    shown = curves_of_figures(monkeypatch)
    conclude(tmp_path / "runs")
    (training,) = (labels for name, labels in shown.items() if name.startswith("training"))
    assert training == [["dense", "rate 0.5", "A/A"]] * 2


def test_a_curve_of_one_seed_does_not_lie_beside_a_mean_of_three_and_the_page_says_so(tmp_path, drawn, monkeypatch):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:2], "l1-0.1": L1[:1], "none-fork1": DENSE[:1], "random-0.5": L1[:1]})
    study(tmp_path / "runs", {"none": [100.0] * 7}, width=0.5)  # small networks have no curves and do not count
    shown = curves_of_figures(monkeypatch)
    conclude(tmp_path / "runs")
    (training,) = (labels for name, labels in shown.items() if name.startswith("training"))
    assert training == [["dense", "rate 0.5"]]
    told = "curves of DQN, SpaceInvadersNoFrameskip-v4, A/A, l1-0.1, random-0.5: fewer than half of the seeds of another arm"
    assert told in (tmp_path / "report of runs" / "index.html").read_text()


def test_a_legend_is_no_wider_than_its_figure(tmp_path, drawn, monkeypatch):
    study(tmp_path / "runs", {arm: L1[:1] for arm in ("none", "l1-0.5", "random-0.5", "l1-structured-0.5", "none-fork1")})
    study(tmp_path / "runs", {"l1-0.5": L1[:1]}, prune_cuts=8)
    save, widths = figures.save, {}

    def save_and_look(figure, out, name):
        save(figure, out, name)
        widths[name] = [legend.get_window_extent().width / figure.bbox.width for legend in figure.legends]

    monkeypatch.setattr(figures, "save", save_and_look)
    conclude(tmp_path / "runs")
    assert len(widths["return_against_rate"]) == 1 and max(share for of_figure in widths.values() for share in of_figure) <= 1


def test_removed_units_without_a_dense_run_have_no_figure_of_bytes(tmp_path, drawn):
    study(tmp_path / "runs", {"l1-structured-0.3": L1[:1], "l1-structured-0.5": L1[:1]})
    conclude(tmp_path / "runs")
    out = tmp_path / "report of runs"
    assert not (out / "bytes.png").exists()
    assert "bytes on disk of DQN, SpaceInvadersNoFrameskip-v4: units were removed" in (out / "index.html").read_text()


def test_health_by_arm_and_moment_has_a_section_of_its_own_where_it_was_measured(tmp_path, drawn):
    inside = {"dormant_fc1": 0.25, "effective_rank": 80, "q_mean": 1.5}
    for seed, more in ((1, 0), (2, 20)):
        write_run(tmp_path / "runs", arm="none", seed=seed, health=inside | {"effective_rank": 80 + more})
        write_run(tmp_path / "runs", arm="l1-0.5", seed=seed, health=inside | {"dormant_fc1": 0.5})
    table = conclude(tmp_path / "runs")["health"]
    assert table[["arm", "moment"]].to_numpy().tolist() == [
        ["none", "before_prune"],
        ["none", "after_prune"],
        ["none", "final"],
        ["l1-0.5", "after_prune"],
        ["l1-0.5", "final"],
    ]
    assert table.effective_rank.tolist() == [90, 90, 90, 80, 80] and table.dormant_fc1.tolist() == [0.25] * 3 + [0.5] * 2
    report_folder = tmp_path / "report of runs"
    page = (report_folder / "index.html").read_text()
    section = page[page.index("<h2>Inside the network</h2>") : page.index("<h2>Tables</h2>")]
    assert "dormant units, fc1" in section and "50.0%" in section and "data:image/" in section
    assert list(report_folder.glob("health_*.png")) and "Inside the network" not in page[page.index("<h2>Tables</h2>") :]

    without = study(tmp_path / "others", {"none": [100.0], "l1-0.5": [90.0]})
    assert "health" not in conclude(without)
    assert "Inside the network" not in (tmp_path / "report of others" / "index.html").read_text()


def test_the_axis_of_health_begins_where_it_was_first_measured_and_that_of_returns_at_the_start(tmp_path, drawn, monkeypatch):
    for arm in ("none", "l1-0.5"):  # 2,000 steps, the cut at 1,000, health every 200 after it
        write_run(tmp_path / "runs", arm=arm, health={"effective_rank": 80})
    save, begins = figures.save, {}

    def save_and_look(figure, out, name):
        begins[name.partition("_")[0]] = figure.axes[0].get_xlim()[0]
        save(figure, out, name)

    monkeypatch.setattr(figures, "save", save_and_look)
    conclude(tmp_path / "runs")
    assert begins["training"] == 0 and begins["health"] == pytest.approx(1200, abs=2000 / figures.GRID)


def test_arms_that_leave_as_many_parameters_are_compared_where_units_are_gone(tmp_path):
    # small networks: 1000 + 9000 * 256 / 512 + 10 = 5,510 of 10,010 entries, 55.0 %
    scores = {"none": [100.0, 120.0, 140.0], "l1-0.45": [90.0, 108.0], "l1-0.5": [80.0, 90.0], "l1-structured-0.5": [50.0]}
    runs = study(tmp_path / "runs", scores | {"l1-0.3": [99.0], "random-0.3": [70.0]})
    for seed, score in ((1, 77.0), (2, 88.0), (9, 500.0)):  # no dense run has seed 9
        write_run(runs, arm="none", seed=seed, hidden_size=256, score=score)
    write_run(runs, arm="random-0.5", training=[(step, 101.0) for step in range(10, 1001, 10)])  # no game after the cut
    table = conclude(runs)["equal_parameters"]
    assert table.arm.tolist() == ["l1-0.5", "l1-structured-0.5", "l1-0.45", "none, hidden_size 256"]
    assert table.left.tolist() == pytest.approx([0.5, 0.5, 0.55, 0.55], abs=1e-3) and table.seeds.tolist() == [2, 1, 2, 2]
    assert table.after_cut.tolist() == [85.0, 50.0, 99.0, 82.5]
    assert table.of_dense.tolist() == pytest.approx([85 / 110, 0.5, 0.9, 0.75])
    told = "arms that leave 55 % of the parameters: l1 at 0.45: 99.0 (90 % of dense, 2 seeds)"
    assert f"{told}; dense with hidden_size 256: 82.5 (75 % of dense, 2 seeds)." in text(tmp_path / "report of runs")

    below = study(tmp_path / "below", {"none": [-20.0], "l1-0.5": [-19.0], "l1-structured-0.5": [-21.0]})
    assert conclude(below)["equal_parameters"].of_dense.isna().all()
    others = study(tmp_path / "others", {"none": [100.0], "l1-0.5": [90.0], "random-0.5": [80.0]})
    assert "equal_parameters" not in conclude(others)


def test_the_table_of_results_in_the_readme_is_what_the_report_makes_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw", lambda *_: [])
    monkeypatch.setattr(report, "page", lambda *_: "")
    results = ROOT / "results"
    tables = conclude(results / "study", out=tmp_path / "report", no_skill=(results / "no_skill.csv").read_text())
    returns, changes = ({(r.study[:3], r.arm): r for _, r in tables[name].iterrows()} for name in ("returns", "changes"))
    row = r"^\| (DQN|PPO) (\S+(?: \S+)?) \| (\d) \| (\d+) \|(.*)\|(.*)\|$"
    lines = re.findall(row, (ROOT / "README.md").read_text().replace("−", "-"), re.M)
    assert len(lines) == 8
    for algorithm, name, n, mean, *cells in lines:
        arm = (algorithm, {"dense": "none"}.get(name, name.replace(" ", "-")))
        assert (int(n), int(mean)) == (returns[arm].seeds, round(returns[arm].after_cut))
        for quantity, cell in zip(("after_cut", "late"), cells if name != "dense" else [], strict=False):
            told = re.findall(r"[+-][\d.]+", cell)
            made = [100 * changes[arm][f"{quantity}{end}"] for end in ("", "_low", "_high")]
            assert len(told) == (3 if changes[arm].pairs > 1 else 1)
            for number, value in zip(told, made, strict=False):
                assert abs(float(number) - value) <= 0.5 * 10 ** -len(number.partition(".")[2]) + 1e-9, (arm, quantity, cell)
