"""The report: what it counts, pairs, names and concludes, and that its numbers are those of the run folders."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evals.games import statistics
from ppo_atari_prune import wandb_records
from scripts import figures, report
from tests.conftest import SCRIPTS, rows, summary

ROOT = Path(__file__).resolve().parents[1]
LOSS = {
    "dqn": ["td_loss", "q_values"],
    "ppo": ["policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "explained_variance"],
}


def write_run(runs_dir: Path, algorithm: str = "dqn", arm: str = "none", seed: int = 1, **given) -> Path:
    """A run folder in the format of real ones.

    given: final, before, after (returns of games), training ((step, return) a game), steps, log_every, compress, finished, and
    options or resolved values that differ from the defaults.
    """
    script = SCRIPTS[algorithm]
    final, steps = given.pop("final", [100.0, 120.0]), given.pop("steps", 2000)
    scores = {"before_prune": given.pop("before", final), "after_prune": given.pop("after", final), "final": final}
    training = given.pop("training", [(step, 100.0) for step in range(10, steps + 1, 10)])
    log_every, compress, finished = given.pop("log_every", 100), given.pop("compress", False), given.pop("finished", True)
    kind, _, rate = arm.partition("-")
    forks = rate.removeprefix("fork") if kind == "none" and rate else ""
    made = {"prune_type": kind, "seed": seed, "total_timesteps": steps, "learning_starts": 8, "num_steps": 4}
    made |= {"prune_rate": float(rate)} if rate and not forks else {}
    made |= {"fork_from": "runs/parent", "fork_seed": int(forks)} if forks else {}
    resolved = {"device": "cpu", "precision": "fp32", "num_threads": 1, "torch": "2.13.0", "ale_py": "0.12.1"}
    resolved |= {"source_sha256": hashlib.sha256(b"script").hexdigest()}
    resolved |= {name: given.pop(name) for name in resolved if name in given}
    device_name = given.pop("device_name", "a CPU")
    made |= given
    args = script.Args(**{name: value for name, value in made.items() if name in script.Args.__dataclass_fields__})
    folder = Path(runs_dir) / (args.run_name or script.default_run_name(args))
    folder.mkdir(parents=True)
    config = {"algorithm": algorithm, "options": asdict(args), "resolved": resolved, "device_name": device_name}
    (folder / "config.json").write_text(json.dumps(config))
    cut, told = steps // 2, script.arm(args)
    total = {"conv1.weight": 1000, "fc1.weight": 9000 * args.hidden_size // 512, "fc1.bias": 10}
    counts = {name: {"total": n, "pruned": round(told["effective_prune_rate"] * n)} for name, n in total.items()}
    tensors = {name: c | {"nonzero": c["total"] - c["pruned"]} for name, c in counts.items()}
    sums = {key: sum(c[key] for c in tensors.values()) for key in ("total", "pruned", "nonzero")}
    disk = {"dense": 4 * sums["total"], "coo": 20 * sums["nonzero"], "csr_int64": 12 * sums["nonzero"] + 100}
    disk["csr_int32"] = 8 * sums["nonzero"] + 100
    played = [
        {"moment": moment, "global_step": steps if moment == "final" else cut, "episode": k, "seed": k, "return": value}
        for moment, values in scores.items()
        for k, value in enumerate(values)
    ]
    played = pd.DataFrame(played).assign(length=500, truncated=False)
    played.to_csv(folder / "eval.csv", index=False, lineterminator="\n")
    logged = [(step, "charts/episodic_return", value) for step, value in training]
    logged += [
        (s, f"losses/{tag}", np.sin(s) + 1e3 / (s + 1e3))
        for s in range(log_every, steps + 1, log_every)
        for tag in LOSS[algorithm]
    ]
    logged += [(cut, "prune/sparsity", sums["pruned"] / sums["total"])]
    logged = sorted(logged, key=lambda row: row[0]) + [(steps, f"disk/{name}_bytes", size) for name, size in disk.items()]
    text = "global_step,tag,value\n" + "".join(f"{step},{tag},{float(value)!r}\n" for step, tag, value in logged)
    if compress:
        (folder / "curves.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    else:
        (folder / "curves.csv").write_text(text)
    if finished:
        told |= {"global_step": steps, "agent_steps_run": steps, **sums, "sparsity": sums["pruned"] / sums["total"]}
        told |= {"emptied": [], "tensors": tensors, "resident_bytes": 4 * sums["total"], "disk": disk}
        told["eval"] = {moment: statistics(list(map(float, values))) for moment, values in scores.items()}
        told["multiply_adds"] = {"dense": 2 * sums["total"], "nonzero": 2 * sums["nonzero"]}
        told["time"] = {
            "agent_steps_per_second_while_learning": 200.0 + seed,
            "wall_seconds": 1.0,
            "peak_ram_bytes": 10**9 + seed,
        }
        told["time"] |= {"peak_gpu_bytes": None, "mean_gpu_utilisation_percent": None}
        (folder / "summary.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(autouse=True)
def only_numbers(request, monkeypatch):
    """Figures take seconds: tests that do not ask for them (`drawn`) go without."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(report, "draw", lambda *_: None)


@pytest.fixture
def drawn():
    """Draw the figures too."""


def conclude(*places: Path, out: Path | None = None, **options) -> dict[str, pd.DataFrame]:
    """The tables of a report, by name."""
    out = out or places[0].parent / f"report of {places[0].name}"
    report.report(report.Args(runs=places, out=out, **options))
    return {file.stem: pd.read_csv(file) for file in out.glob("*.csv")}


def named(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Why each run that is not used like the others is not."""
    table = tables.get("named", pd.DataFrame(columns=["what", "name", "reason"]))
    return {row["name"]: f"{row.what}: {row.reason}" for _, row in table.iterrows()}


def row(table: pd.DataFrame, arm: str) -> pd.Series:
    (found,) = (row for _, row in table.iterrows() if row.arm == arm)
    return found


def study(runs_dir: Path, arms: dict[str, list[float]], algorithm: str = "dqn", **given) -> Path:
    """Runs of each arm, a final score a seed; every one plays two games, that much apart from it."""
    for arm, scores in arms.items():
        for seed, score in enumerate(scores, 1):
            write_run(runs_dir, algorithm, arm, seed, final=[score - 10, score + 10], **given)
    return runs_dir


def text(folder: Path) -> str:
    return (folder / "conclusions.md").read_text()


DENSE, L1 = [100.0, 110.0, 120.0], [90.0, 105.0, 96.0]


# ---------------------------------------------------------------------------------------------------------------- numbers
def test_arms_and_their_paired_differences_are_counted_over_seeds_by_hand(tmp_path):
    tables = conclude(study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1, "random-0.5": DENSE}))
    dense, l1 = row(tables["returns"], "none"), row(tables["returns"], "l1-0.5")
    assert (dense.seeds, dense.final, dense["std"], dense.role) == (3, 110, 10, "dense")
    # t(2, 97.5 %) = 4.302653; 4.302653 * 10 / sqrt(3) = 24.841378
    assert (dense.final_low, dense.final_high) == pytest.approx((110 - 24.841378, 110 + 24.841378))
    # -10 -5 -24: mean -13, deviation sqrt((9 + 64 + 121) / 2) = 9.848858; * 4.302653 / sqrt(3) = 24.465919
    assert (l1.pairs, l1.difference, l1.difference_std, l1.role) == (3, -13, pytest.approx(9.848858), "declared")
    assert (l1.difference_low, l1.difference_high) == pytest.approx((-13 - 24.465919, -13 + 24.465919))
    assert l1.change == pytest.approx(-13 / 110) and l1.detectable == pytest.approx(5.0637 * 9.848858, rel=1e-4)
    # t^2 = 13^2 / (97 / 3) = 5.226804; p = 1 - sqrt(5.226804 / 7.226804); the other arm has no spread and no p to be counted
    assert (l1.p, l1.p_holm) == pytest.approx((1 - np.sqrt(5.226804 / 7.226804),) * 2, rel=1e-5)
    assert row(tables["returns"], "random-0.5").role == "exploratory"


def test_more_games_and_more_arms_do_not_make_more_seeds(tmp_path):
    few = conclude(study(tmp_path / "few", {"none": DENSE, "l1-0.5": L1}))["returns"]
    scores = {"none": DENSE, "l1-0.5": L1}
    for arm, means in scores.items():
        for seed, mean in enumerate(means, 1):
            write_run(tmp_path / "many", "dqn", arm, seed, final=[mean - 10, mean + 10] * 50)
    study(tmp_path / "many", {"random-0.5": L1, "l1-0.3": L1})
    many = conclude(tmp_path / "many")["returns"]
    for key in ("pairs", "difference", "difference_low", "difference_high", "change_low", "change_high", "p", "detectable"):
        assert row(many, "l1-0.5")[key] == pytest.approx(row(few, "l1-0.5")[key], nan_ok=False)
    assert row(many, "l1-0.5").p_holm == pytest.approx(3 * row(few, "l1-0.5").p)


def test_one_seed_has_means_and_no_interval_and_the_sentences_say_why(tmp_path):
    tables = conclude(study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0], "none-fork1": [104.0]}))
    found = tables["returns"][["final_low", "std", "difference_low", "change_low", "p", "p_holm", "detectable", "p_not_worse"]]
    assert found.isna().all(axis=None) and (row(tables["returns"], "l1-0.5")[["final", "difference"]] == [90, -10]).all()
    said = text(tmp_path / "report of runs")
    assert "l1 at 0.5: -10 % in one seed. A loss of 10 % or more: one seed cannot tell." in said
    assert "One seed has no interval: how far seeds differ is unknown" in said and "interval -" not in said


def test_training_recovery_of_the_run_folders_is_in_the_table_and_never_is_no_number(tmp_path):
    # 4 games up to the cut at 1000, level 10; after it as in tests/test_paired.py, steps * 10
    steps, fell = [700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1500], [5, 5, 10, 10]
    write_run(tmp_path / "runs", training=list(zip(steps, [*fell, 10, 10, 10, 10, 10], strict=True)))
    write_run(tmp_path / "runs", arm="l1-0.5", training=list(zip(steps, [*fell, 4, 6, 9, 11, 20], strict=True)))
    write_run(tmp_path / "runs", arm="l1-0.8", training=list(zip(steps, [*fell, 8, 8, 8, 8, 8], strict=True)))
    table = conclude(tmp_path / "runs", window=2)["recovery"]
    back, never = row(table, "l1-0.5"), row(table, "l1-0.8")
    assert (back.level, back.back, back.steps_until_back, back.area, back.after) == (10, 1, 400, 1350, 10)
    assert back.area_share == pytest.approx(1350 / (10 * 1000)) and back.difference == 0
    assert (never.back, never.steps_until_back, never.area) == (0, np.inf, 1000)
    shown = (tmp_path / "report of runs" / "recovery.md").read_text().splitlines()
    assert sum("not within the run" in line for line in shown) == 1
    told = "Exploratory, in training from the cut to the end: l1-0.5 +0.0 %; l1-0.8 -20.0 %."
    assert told in text(tmp_path / "report of runs")


def test_training_returns_of_several_seeds_are_told_with_the_interval_of_the_recovery_table(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / "runs", seed=seed, training=[(500, 10), (1500, 10 + seed)])
        write_run(tmp_path / "runs", arm="l1-0.5", seed=seed, training=[(500, 10), (1500, 9 + seed * seed)])
    half = row(conclude(tmp_path / "runs")["recovery"], "l1-0.5")  # dense 11 12 13, l1 10 13 18
    assert half.change == pytest.approx(5 / 36) and half.change_low < 0
    told = f"l1-0.5 +13.9 % (95 % interval {100 * half.change_low:+.1f} to {100 * half.change_high:+.1f})."
    assert told in text(tmp_path / "report of runs")


def test_scores_are_written_as_rliable_takes_them_seeds_by_games(tmp_path):
    runs = tmp_path / "runs"
    study(runs, {"none": [1.0, 2.0], "l1-0.5": [5.0, 6.0]}, env_id="BreakoutNoFrameskip-v4")
    study(runs, {"none": [3.0, 4.0, 9.0], "l1-0.5": [7.0, 8.0]}, env_id="PongNoFrameskip-v4")
    tables = conclude(runs)
    scores = {name: array.tolist() for name, array in np.load(tmp_path / "report of runs" / "scores.npz").items()}
    assert scores == {"DQN, none": [[1, 3], [2, 4]], "DQN, l1-0.5": [[5, 7], [6, 8]]}  # a seed that one game lacks is left out
    assert tables["runs"].final.tolist() == [1, 2, 5, 6, 3, 4, 9, 7, 8]  # and is in the table of runs


def test_the_interquartile_mean_is_over_five_seeds_of_each_of_several_games_and_not_over_fewer(tmp_path):
    for seeds in (4, 5):
        runs = tmp_path / str(seeds)
        study(runs, {"none": [2.0] * seeds, "l1-0.5": [2.0, 2.0, 2.0, 4.0, 6.0][:seeds]}, env_id="BreakoutNoFrameskip-v4")
        study(runs, {"none": [10.0] * seeds, "l1-0.5": [15.0] * seeds}, env_id="PongNoFrameskip-v4")
    assert "aggregate" not in conclude(tmp_path / "4")
    # changes: 0 0 0 1 2, and 0.5 five times; two of ten are left out at each end: (0 + 5 * 0.5) / 6
    (aggregate,) = (r for _, r in conclude(tmp_path / "5")["aggregate"].iterrows())
    assert (aggregate.arm, aggregate.games, aggregate.pairs) == ("l1-0.5", 2, 10)
    assert aggregate.iqm == pytest.approx(2.5 / 6)
    assert "## Interquartile means: DQN, BreakoutNoFrameskip-v4; DQN, PongNoFrameskip-v4" in text(tmp_path / "report of 5")


def test_the_trend_is_a_slope_over_rates_of_the_seeds_that_have_them_all_and_positive_controls_are_no_part_of_it(tmp_path):
    arms = {"none": [100.0, 120.0], "l1-0.1": [98.0, 118.0, 50.0], "l1-0.5": [90.0, 108.0], "random-0.3": [90.0, 110.0]}
    (trend,) = (r for _, r in conclude(study(tmp_path / "runs", arms))["trend"].iterrows())
    assert (trend.criterion, trend.rates, trend.seeds, trend.role) == ("l1", "0.1 0.5", 2, "declared")
    # centred rates -.2 -.1 .3, their squares add up to .14; seed 1: -20 a unit of rate; seed 2: (-24 - 11.8 + 32.4) / .14
    slope = pytest.approx((-20 - 3.4 / 0.14) / 2 / 10)
    assert trend.slope == slope
    # a positive control is no part of it, and a rate that only some seeds have costs itself, not the others
    study(tmp_path / "runs", {"l1-0.05": [99.0], "l1-0.9": [3.0], "l1-0.95": [2.0, 1.0]})
    tables = conclude(tmp_path / "runs")
    (again,) = (r for _, r in tables["trend"].iterrows())
    assert (again.rates, again.seeds, again.slope) == ("0.1 0.5", 2, slope)
    assert row(tables["returns"], "l1-0.95").role == "positive control"
    told = text(tmp_path / "report of runs")
    assert "Declared, trend of l1 over 0.1 0.5 for each 0.1 of rate: " in told and "Positive control: l1 at 0.95: " in told


# ------------------------------------------------------------------------------------------------------------- comparable
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("source_sha256", "b" * 64, "source_sha256 [0-9a-f]{8} -> b{8}$"),
        ("precision", "bf16", "precision fp32 -> bf16$"),
        ("device", "cuda", "device cpu -> cuda$"),
        ("num_threads", 2, "num_threads 1 -> 2$"),
        ("torch", "2.14.0", "torch 2.13.0 -> 2.14.0$"),
        ("ale_py", "0.13.0", "ale_py 0.12.1 -> 0.13.0$"),
        ("learning_rate", 0.5, "learning_rate 0.0001 -> 0.5$"),
        ("prune_at", 0.25, "prune_at 0.5 -> 0.25$"),
    ],
)
def test_a_run_that_its_dense_twin_differs_from_is_named_with_what_differs_and_not_paired(option, value, told, tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:2]})
    odd = write_run(tmp_path / "runs", arm="l1-0.5", seed=3, final=[96.0], **{option: value})
    tables = conclude(tmp_path / "runs")
    (reason,) = (reason for name, reason in named(tables).items() if name == odd.name)
    assert reason.startswith("not compared: it differs from the dense run ") and re.search(told, reason)
    pairs = tables["returns"][tables["returns"].arm == "l1-0.5"].pairs
    assert pairs.sum() == 2 and odd.name in set(tables["runs"].run)


def test_arms_of_another_scope_or_without_biases_are_arms_of_their_own_with_the_same_twin(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    study(tmp_path / "runs", {"l1-0.5": L1}, prune_scope="global", prune_bias=False)
    table = conclude(tmp_path / "runs")["returns"]
    assert table.arm.tolist() == ["none", "l1-0.5", "l1-0.5 global without biases"] and table.pairs.tolist() == [0, 3, 3]
    assert table.role.tolist() == ["dense", "declared", "exploratory"]


def test_a_small_dense_network_is_a_control_and_no_twin_and_equals_that_drift_are_the_a_a_arm(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.8": L1, "none-fork1": [102.0, 106.0, 121.0]})
    study(tmp_path / "runs", {"none": [80.0, 90.0]}, hidden_size=83)
    tables = conclude(tmp_path / "runs")
    table = tables["returns"]
    assert dict(zip(table.arm, table.role, strict=True)) == {
        "none": "dense",
        "none-fork1": "A/A",
        "none, hidden_size 83": "control",
        "l1-0.8": "exploratory",
    }
    assert row(table, "none, hidden_size 83").pairs == 0 and row(table, "none").final == 110
    # 2 -4 1: deviation sqrt((49 + 121 + 16) / 9 / 2)
    assert row(table, "none-fork1").difference_std == pytest.approx(np.sqrt(186 / 18)) and np.isnan(row(table, "none-fork1").p)
    assert "A/A: none-fork1" in text(tmp_path / "report of runs")
    assert list(named(tables).values()) == ["missing: no run of seed 3; seeds 1, 2, 3 are in the study"]


def test_one_contrast_an_algorithm_is_declared_that_of_the_study_nearest_to_the_defaults(tmp_path):
    for options in ({}, {"buffer_size": 100_000}, {"env_id": "PongNoFrameskip-v4"}):
        study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1, "l1-0.3": L1}, **options)
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1}, "ppo")
    table = conclude(tmp_path / "runs")["returns"]
    declared = table[table.role == "declared"]
    assert declared.study.tolist() == [
        "DQN, SpaceInvadersNoFrameskip-v4, buffer_size 1000000",
        "PPO, SpaceInvadersNoFrameskip-v4",
    ]
    assert len(set(table.study)) == 4 and table.p_not_worse.notna().sum() == 2


def test_a_run_that_is_there_twice_is_counted_once_and_named(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    copied = tmp_path / "runs" / "elsewhere"
    write_run(copied, arm="none", seed=1, final=[500.0], num_threads=4)  # the one that fewer arms can be paired with
    tables = conclude(tmp_path / "runs")
    assert row(tables["returns"], "none").seeds == 3 and row(tables["returns"], "none").final == 110
    ((name, reason),) = named(tables).items()
    assert str(copied) in name and reason.startswith("counted once: none of seed 1 is there as ")


# --------------------------------------------------------------------------------------------------------------- sentences
@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([98.0, 112.0, 120.0], r"a loss above \d\.\d % is excluded, a smaller one is not"),
        ([58.0, 72.0, 80.0], r"a loss of at least 2\d % is seen, one above 5\d % is excluded"),
        ([148.0, 162.0, 170.0], r"a gain of at least 3\d % is seen, one above 5\d % is excluded"),
    ],
)
def test_a_sentence_says_what_is_excluded_and_what_is_not_and_never_that_there_is_no_effect(scores, told, tmp_path):
    conclude(study(tmp_path / "runs", {"none": DENSE, "l1-0.5": scores}))
    said = text(tmp_path / "report of runs")
    assert re.search(rf"Declared: l1 at 0.5: [+-][\d.]+ % \(95 % interval [+-][\d.]+ to [+-][\d.]+\); {told}", said), said
    assert "3 pairs; 80 % power for a difference of" in said


def test_a_loss_in_one_exploratory_arm_of_many_is_called_seen_only_where_holm_bears_it_out(tmp_path):
    # -20 -30 -25: t = 25 / (5 / sqrt(3)) = 8.66, p = 0.013; times 5 arms it is 0.065
    other = {f"random-{rate}": [DENSE[0] - 1, DENSE[1] + 1, DENSE[2] - 0.5] for rate in (0.1, 0.3, 0.5, 0.8)}
    arms = {"none": DENSE, "l1-0.8": [80.0, 80.0, 95.0]}
    conclude(study(tmp_path / "two", arms))
    conclude(study(tmp_path / "many", arms | other))
    assert re.search(r"l1 at 0.8: -23 % .*; a loss of at least 13 % is seen, ", text(tmp_path / "report of two"))
    alone = r"l1 at 0.8: -23 % .*; a loss of at least 13 % by this interval alone, not after Holm's correction, "
    assert re.search(alone, text(tmp_path / "report of many"))


def test_the_declared_loss_is_excluded_or_seen_only_where_the_whole_interval_is_on_one_side_of_the_margin(tmp_path):
    conclude(study(tmp_path / "sure", {"none": DENSE, "l1-0.5": [99.0, 111.0, 119.0]}))
    conclude(study(tmp_path / "unsure", {"none": DENSE, "l1-0.5": L1}))
    assert "A loss of 10 % or more: excluded (one-sided p = 0.0" in text(tmp_path / "report of sure")
    assert "A loss of 10 % or more: not excluded (one-sided p = 0.6" in text(tmp_path / "report of unsure")
    conclude(study(tmp_path / "lost", {"none": DENSE, "l1-0.5": [58.0, 72.0, 80.0]}))
    assert "A loss of 10 % or more: seen." in text(tmp_path / "report of lost")


def test_where_dense_scores_are_below_0_differences_are_told_in_points(tmp_path):
    conclude(study(tmp_path / "runs", {"none": [-20.0, -18.0, -19.0], "l1-0.5": [-21.0, -19.0, -20.5]}))
    said = text(tmp_path / "report of runs")
    assert re.search(r"l1 at 0.5: -1.2 points \(95 % interval -1.9 to -0.4\)", said)
    assert "A loss of 10 % or more: the share has no interval." in said


def test_seeds_that_differ_all_alike_are_no_certainty_and_an_arm_at_rate_0_is_reported(tmp_path):
    conclude(study(tmp_path / "runs", {"none": [0.0, 0.0, 0.0], "l1-0.5": [0.0, 0.0, 0.0], "l1-0": [0.0, 0.0, 0.0]}))
    said = text(tmp_path / "report of runs")
    assert "Dense networks end at 0: 3 seeds of 2 games." in said
    alike = "+0.0 points in each of 3 seeds: no interval. 3 pairs"
    assert f"Declared: l1 at 0.5: {alike}. A loss of 10 % or more: the share has no interval." in said
    assert f"Exploratory: l1 at 0: {alike}." in said
    conclude(study(tmp_path / "points", {"none": [10.0, 11.0, 12.0], "l1-0.5": [12.5, 13.5, 14.5]}))
    points = text(tmp_path / "report of points")
    assert re.search(r"l1 at 0.5: \+23 % \(95 % interval \+\d+ to \+\d+\)", points) and "or more: excluded" in points


def test_what_the_runs_computed_in_and_on_is_told_with_the_seeds_where_it_differs(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    conclude(tmp_path / "runs")
    assert "; fp32 on a CPU, threads 1, torch 2.13.0." in text(tmp_path / "report of runs")
    for arm in ("none", "l1-0.5"):
        write_run(tmp_path / "runs", arm=arm, seed=4, precision="bf16", device_name="a newer CPU")
    conclude(tmp_path / "runs")
    told = "; fp32 on a CPU, threads 1, torch 2.13.0 (seeds 1, 2, 3); bf16 on a newer CPU, threads 1, torch 2.13.0 (seeds 4)."
    assert told in text(tmp_path / "report of runs")


# ----------------------------------------------------------------------------------------------------- what is not a number
def torn(folder: Path, name: str, keep: float = 0.5) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(keep * len(data))])


def short(folder: Path) -> None:
    lines = (folder / "eval.csv").read_text().splitlines(keepends=True)
    (folder / "eval.csv").write_text("".join(lines[:-1]))


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
    "eval.csv has 1 games final, summary.json 2": short,
    "eval.csv has a mean of": lambda folder: (folder / "eval.csv").write_text(
        (folder / "eval.csv").read_text().replace("120.0", "12.0")
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
    assert row(tables["returns"], "none").seeds == 2 and row(tables["returns"], "none").final == 110
    assert row(tables["returns"], "l1-0.5").pairs == 2 and row(tables["returns"], "l1-0.5").seeds == 3
    assert f"broken: {folder.name}" in text(tmp_path / "report of runs")


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
    assert re.fullmatch(r"unfinished: no summary.json, at agent step 1,[567]\d\d of 2,000", told[going.name])
    assert told[failed.name].startswith("failed: no summary.json, ") and "No space left on device" in told[failed.name]
    assert told["begun"].startswith("empty: ")
    assert told["x__dqn_atari_prune__l1-0.3__s1"] == "failed: it left no run folder; its log ends: Killed"
    missing = [reason for name, reason in told.items() if "random-0.3" in name]
    assert missing == ["missing: no run of seed 3; seeds 1, 2, 3 are in the study"] and len(told) == 5
    assert (row(tables["returns"], "l1-0.5").seeds, row(tables["returns"], "random-0.3").pairs) == (1, 2)


def test_a_single_run_without_evaluation_games_is_reported_with_what_it_has(tmp_path, drawn):
    folder = write_run(tmp_path / "runs", arm="l1-0.5")
    told = summary(folder)
    del told["eval"]
    (folder / "summary.json").write_text(json.dumps(told))
    (folder / "eval.csv").unlink()
    tables = conclude(folder)
    assert "it played no evaluation games" in str(tables["named"].reason.tolist()) and tables["costs"].total.tolist() == [10010]
    assert "final" not in tables["returns"] and (folder.parent / f"report of {folder.name}" / "bytes.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "RUNS must hold a finished run, got nothing"),
        (["{empty}"], "RUNS must hold a finished run, got "),
        (["{unfinished}"], "RUNS must hold a finished run, got "),
        (["{nowhere}"], "RUNS must be folders that exist, got "),
        (["{runs}", "--window", "0"], "--window must be at least 1, got 0"),
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
    monkeypatch.setattr("sys.argv", ["report.py", f"--out={tmp_path / 'out'}", *(word.format(**places) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    err = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and err[-1].startswith(f"error: {told}") and sorted(tmp_path.rglob("*")) == before
    assert all(line.startswith(("unfinished: ", "empty: ")) for line in err[:-1])


# ----------------------------------------------------------------------------------------------------------------- output
def test_the_same_bytes_come_from_run_folders_and_from_their_packed_copies(tmp_path, drawn):
    runs, packed = tmp_path / "runs", tmp_path / "results" / "study"
    study(runs, {"none": [100.0, 90.0], "none-fork1": [95.0], "l1-0.5": [90.0], "random-0.8": [80.0]})
    study(runs, {"l1-0.5": [85.0], "l1-0.8": [70.0]}, prune_scope="global")  # a third criterion
    study(runs, {"none": [70.0]}, hidden_size=83)
    for folder in runs.iterdir():
        shutil.copytree(folder, packed / folder.name, ignore=shutil.ignore_patterns("curves.csv"))
        (packed / folder.name / "curves.csv.gz").write_bytes(gzip.compress((folder / "curves.csv").read_bytes()))
    made = {place: tmp_path / f"report of {place.parent.name}" for place in (runs, packed)}
    for place, out in made.items():
        conclude(place, out=out)
    files = {file.name: file.read_bytes() for file in made[runs].iterdir()}
    assert files == {file.name: file.read_bytes() for file in made[packed].iterdir()}
    for kind in ("return_against_rate", "change_against_rate", "moments", "sparsity", "bytes", "speed", "training", "losses"):
        assert {Path(name).suffix for name in files if name.startswith(kind)} == {".png", ".svg"}
    for table in ("returns", "recovery", "costs", "runs"):
        assert f"{table}.md" in files and f"{table}.csv" in files


def test_a_report_of_a_real_pair_has_the_numbers_of_its_run_folders_on_one_page_that_needs_nothing_else(
    small_run, tmp_path, drawn
):
    dense = small_run("ppo", prune_type="none")
    fork = small_run("ppo", "fork", prune_type="l1", prune_rate=0.5, fork_from=str(dense))
    words = [
        sys.executable,
        str(ROOT / "scripts" / "report.py"),
        str(dense),
        str(fork),
        f"--out={tmp_path / 'out'}",
        "--window=1",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
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
    assert row(tables["returns"], "l1-0.5").pairs == 1 and "named" not in tables
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img ") == len(list((tmp_path / "out").glob("*.png"))) >= 8
    assert set(re.findall(r'(?:src|href)="([^"]{10})', page)) == {"data:image"} and "://" not in page
    assert "l1 at 0.5: " in page and "l1 at 0.5: " in done.stdout and "<h2>Method</h2>" in page


def test_a_curve_is_the_mean_of_the_last_rows_and_empty_before_there_are_half_of_them(tmp_path):
    run = report.collect((write_run(tmp_path, training=[(500, 8.0), (1000, 4.0), (2000, 6.0)]),), window=2)[0][0]
    curve = figures.sampled(run, "charts/episodic_return", 3)  # a half of three is two
    assert len(curve) == figures.GRID and np.isnan(curve[99]) and (curve[100:199] == 6).all() and curve[199] == 6
    assert figures.sampled(run, "charts/episodic_return", 1)[[49, 50, 99, 100, 199]] == pytest.approx(
        [np.nan, 8, 8, 4, 6], nan_ok=True
    )


def test_a_new_report_replaces_an_earlier_one_and_leaves_nothing_of_it(tmp_path):
    study(tmp_path / "two", {"none": DENSE, "l1-0.5": L1, "l1-0.3": L1})
    study(tmp_path / "one", {"none": DENSE})
    out = tmp_path / "out"
    assert "trend" in conclude(tmp_path / "two", out=out)
    (out / "notes.txt").write_text("kept")
    assert "trend" not in conclude(tmp_path / "one", out=out) and (out / "notes.txt").is_file()


def test_a_tracked_report_logs_its_figures_and_tables_offline_and_an_untracked_one_does_not_know_wandb(tmp_path, drawn):
    study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0]})
    call = "import sys; from scripts import report; report.main(); assert ('wandb' in sys.modules) == ('--track' in sys.argv)"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    for words in ([], ["--track"]):
        command = [sys.executable, "-c", call, str(tmp_path / "runs"), f"--out={tmp_path / 'out'}", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
    assert "W&B is out of reach" in done.stderr
    records = wandb_records(tmp_path / "out")
    logged = json.dumps([record for record in records if record["type"] == "history"])
    for file in (tmp_path / "out").glob("*.png"):
        assert f"figures/{file.stem}" in logged
    for file in (tmp_path / "out").glob("*.csv"):
        assert f"tables/{file.stem}" in logged
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert run["job_type"] == "report"


def test_the_curve_of_an_a_a_arm_lies_beside_those_of_each_criterion(tmp_path, drawn, monkeypatch):
    study(tmp_path / "runs", {"none": [100.0], "l1-0.5": [90.0], "random-0.5": [80.0], "none-fork1": [104.0]})
    save, shown = figures.save, {}

    def save_and_look(figure, out, name):
        shown[name] = [[line.get_label() for line in ax.lines if len(line.get_xdata()) == figures.GRID] for ax in figure.axes]
        save(figure, out, name)

    monkeypatch.setattr(figures, "save", save_and_look)
    conclude(tmp_path / "runs")
    (training,) = (labels for name, labels in shown.items() if name.startswith("training"))
    assert training == [["dense", "rate 0.5", "A/A"]] * 2
