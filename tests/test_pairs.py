"""What is compared with what: two runs are a pair only if they were one run until the cut."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from tests.run_folders import DENSE, L1, conclude, named, row, study, text, write_run


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])


def folder_of(runs: Path, arm: str, seed: int = 1) -> Path:
    (folder,) = runs.glob(f"*__{arm}__s{seed}*")
    return folder


def replay(folder: Path, moment: str, returns: list[float], seeds: tuple[int, ...] = (0, 1)) -> None:
    """Other evaluation games of a moment, in eval.csv and summary.json."""
    table = pd.read_csv(folder / "eval.csv")
    table.loc[table.moment == moment, "return"] = returns
    table.loc[table.moment == moment, "seed"] = seeds
    table.to_csv(folder / "eval.csv", index=False, lineterminator="\n")
    told = json.loads((folder / "summary.json").read_text())
    told["eval"][moment]["mean"] = float(np.mean(returns))
    (folder / "summary.json").write_text(json.dumps(told))


# -------------------------------------------------------------------------------------------------------- three deceptions
def test_an_evaluation_that_was_changed_between_a_dense_run_and_its_arm_makes_no_pair_and_the_game_is_named(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    replay(folder_of(runs, "l1-0.5"), "before_prune", [91.0, 300.0])  # epsilon 1.0 in evaluation, say
    tables = conclude(runs)
    reason = named(tables)[folder_of(runs, "l1-0.5").name]
    assert reason.startswith("not compared: it differs from the dense run ")
    assert reason.endswith(
        "eval.csv, before_prune: episode 1, seed 1, return 110.0, length 500, truncated False"
        " -> episode 1, seed 1, return 300.0, length 500, truncated False"
    )
    assert row(tables["changes"], "l1-0.5").pairs == 2


def test_runs_whose_curves_part_before_the_cut_make_no_pair_and_the_line_is_named(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    curves = folder_of(runs, "l1-0.5", 3) / "curves.csv"
    lines = curves.read_text().splitlines()
    assert lines[3] == "30,charts/episodic_return,103.0"
    lines[3] = "30,charts/episodic_return,103.00000000000001"  # another model of CPU
    curves.write_text("\n".join(lines) + "\n")
    tables = conclude(runs)
    reason = named(tables)[folder_of(runs, "l1-0.5", 3).name]
    told = "curves.csv, line 4: 30 charts/episodic_return 103.0 -> 30 charts/episodic_return 103.00000000000001"
    assert reason.endswith(told) and row(tables["changes"], "l1-0.5").pairs == 2


def test_a_structured_arm_of_which_no_unit_was_removed_is_broken(tmp_path):
    folder = write_run(tmp_path / "runs", arm="l1-structured-0.5")
    whole = json.loads((folder / "summary.json").read_text())
    whole["tensors"]["fc1.bias"]["pruned"] = 0
    (folder / "summary.json").write_text(json.dumps(whole))
    reason = named(conclude(tmp_path / "runs", study(tmp_path / "others", {"none": DENSE})))[folder.name]
    assert reason == "broken: summary.json has 0 units gone from fc1.bias, where l1-structured-0.5 removes 5"


def test_an_arm_that_was_never_pruned_is_no_proof_that_pruning_costs_nothing(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": DENSE})
    for seed in (1, 2, 3):
        folder = folder_of(runs, "l1-0.5", seed)
        told = json.loads((folder / "summary.json").read_text())
        dense = json.loads((folder_of(runs, "none", seed) / "summary.json").read_text())
        told |= {key: dense[key] for key in ("pruned", "nonzero", "sparsity", "tensors")}
        (folder / "summary.json").write_text(json.dumps(told))
    tables = conclude(runs)
    assert set(named(tables).values()) == {"broken: summary.json has 0 pruned entries, where l1-0.5 removes 5,005"}
    assert "changes" not in tables and "a loss of 10 % or more is excluded" not in text(tmp_path / "report of runs")
    folder = folder_of(runs, "l1-0.5")  # pruned at the cut, and grown back after it
    told["seed"], told["tensors"] = 1, {"fc1.weight": {"total": 10010, "pruned": 5005, "nonzero": 5005}}
    (folder / "summary.json").write_text(json.dumps(told))
    reason = named(conclude(runs))[folder.name]
    assert reason == "broken: summary.json has 0 zeros at the end, where the cut removed 5,005"


# --------------------------------------------------------------------------------------------------------------- the past
def test_final_games_that_start_from_other_seeds_than_those_of_the_twin_make_no_pair(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    replay(folder_of(runs, "l1-0.5"), "final", [500.0, 600.0], seeds=(0, 77))
    tables = conclude(runs)
    assert "eval.csv, final: episode 1, seed 1 -> episode 1, seed 77" in named(tables)[folder_of(runs, "l1-0.5").name]


def test_a_run_that_was_cut_or_ended_at_another_step_makes_no_pair(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:2]})
    odd = write_run(runs, arm="l1-0.5", seed=3, steps=2400)
    assert named(conclude(runs))[odd.name].endswith(": cut 1000 -> 1200, end 2000 -> 2400")


def test_a_fork_has_the_past_of_its_twin_and_is_a_pair_and_so_is_a_real_one(small_run, tmp_path):
    dense = small_run("ppo", prune_type="none")
    fork = small_run("ppo", "fork", prune_type="l1", prune_rate=0.5, fork_from=str(dense))
    equal = small_run("ppo", "equal", prune_type="none", fork_from=str(dense), fork_seed=1)
    tables = conclude(dense, fork, equal, out=tmp_path / "out")
    assert "named" not in tables and tables["runs"].paired.tolist() == [False, True, True]  # dense, A/A, l1
    assert row(tables["returns"], "none").runs == 2 and row(tables["returns"], "A/A").runs == 1


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("source_sha256", "b" * 64, r"text of script or prune_utils \(SHA-256 [0-9a-f]{8} -> b{8}\)$"),
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
    odd = write_run(tmp_path / "runs", arm="l1-0.5", seed=3, **{option: value})
    tables = conclude(tmp_path / "runs")
    reason = named(tables)[odd.name]
    assert reason.startswith("not compared: it differs from the dense run ") and re.search(told, reason)
    assert row(tables["changes"], "l1-0.5").pairs == 2 and odd.name in set(tables["runs"].run)


def test_a_pair_on_two_machines_is_compared_for_its_past_is_checked_and_both_machines_are_named(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1[:2]})
    moved = write_run(tmp_path / "runs", arm="l1-0.5", seed=3, device_name="another CPU", numpy="2.5.0")
    tables = conclude(tmp_path / "runs")
    reason = named(tables)[moved.name]
    assert reason.startswith("other machine: compared all the same with ")
    assert reason.endswith("whose past it has: device_name a CPU -> another CPU, numpy 2.4.6 -> 2.5.0")
    assert row(tables["changes"], "l1-0.5").pairs == 3


def test_an_equal_continuation_on_another_machine_is_named_too(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    moved = write_run(tmp_path / "runs", arm="none-fork1", seed=1, score=50.0, device_name="another CPU")
    tables = conclude(tmp_path / "runs")
    ((name, reason),) = ((name, reason) for name, reason in named(tables).items() if reason.startswith("other machine"))
    assert name == moved.name and reason.endswith("device_name a CPU -> another CPU")
    assert row(tables["returns"], "none").runs == 4


# -------------------------------------------------------------------------------------------------------------------- arms
def test_forks_are_averaged_within_their_seed_and_n_stays_the_number_of_seeds(tmp_path):
    runs = tmp_path / "runs"
    study(runs, {"none": [100.0, 110.0, 120.0], "none-fork1": [104.0, 106.0, 124.0]})  # 102 108 122
    study(runs, {f"l1-0.5-fork{k}": [90.0 + k, 100.0 + k, 110.0 - 2 * k] for k in (1, 2, 3)})  # 92 102 106
    tables = conclude(runs)
    dense, half, equal = row(tables["returns"], "none"), row(tables["changes"], "l1-0.5"), row(tables["changes"], "A/A")
    assert (dense.seeds, dense.runs, dense.after_cut) == (3, 6, pytest.approx(332 / 3))
    # differences -10 -6 -16: mean -32 / 3, squares 4 / 9 + 196 / 9 + 256 / 9, deviation sqrt(456 / 9 / 2)
    assert (half.pairs, half.runs, half.role, half.after_cut_points) == (3, 9, "declared", pytest.approx(-32 / 3))
    spread = 4.302653 * np.sqrt(456 / 18 / 3)
    assert half.after_cut_points_low == pytest.approx(-32 / 3 - spread, rel=1e-6)
    assert (equal.pairs, equal.role, equal.after_cut_points) == (3, "A/A", pytest.approx((4 - 4 + 4) / 3))
    assert tables["runs"].run.is_unique and len(tables["runs"]) == 15


def test_seeds_without_an_a_a_run_are_named_where_others_have_one(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "none-fork1": DENSE[:1], "l1-0.5": L1})
    told = [reason for name, reason in named(conclude(runs)).items() if name.endswith(", A/A")]
    assert told == ["missing: no second dense run of seed 2, 3 that is compared"]


def test_a_dense_fork_with_another_past_is_no_twin(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    odd = write_run(runs, arm="none-fork1", seed=1, before=[1.0, 2.0], score=900.0)
    tables = conclude(runs)
    assert "not compared: it differs" in named(tables)[odd.name] and row(tables["returns"], "none").after_cut == 110


def test_arms_of_another_scope_or_without_biases_are_arms_of_their_own_with_the_same_twin(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    study(tmp_path / "runs", {"l1-0.5": L1}, prune_scope="global", prune_bias=False)
    table = conclude(tmp_path / "runs")["changes"]
    assert table.arm.tolist() == ["l1-0.5", "l1-0.5 global without biases"] and table.pairs.tolist() == [3, 3]
    assert table.role.tolist() == ["declared", "exploratory"]


def test_the_last_bits_of_health_before_the_cut_keep_no_pair_apart(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    for file in runs.glob("*__l1-0.5__s1*/curves.csv"):
        file.write_text(file.read_text().replace("1000,prune/sparsity", "1000,health/weight_norm,1.5\n1000,prune/sparsity"))
    assert conclude(runs)["changes"].pairs.tolist() == [3]


def test_gradual_arms_and_shares_by_erk_are_arms_of_their_own_beside_one_shot(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    study(tmp_path / "runs", {"l1-0.5": L1}, prune_cuts=8)
    study(tmp_path / "runs", {"l1-0.5": L1}, prune_cuts=8, prune_until=0.7, prune_scope="erk")
    table = conclude(tmp_path / "runs")["changes"]
    assert table.arm.tolist() == ["l1-0.5", "l1-0.5 in 8 cuts until 0.7 erk", "l1-0.5 in 8 cuts until 0.8"]
    assert table.pairs.tolist() == [3, 3, 3] and table.role.tolist() == ["declared", "exploratory", "exploratory"]
    assert "l1 at 0.5 in 8 cuts until 0.8" in text(tmp_path / "report of runs")


def test_a_variant_is_also_compared_with_the_plain_cut_of_its_criterion_and_rate_in_the_seeds_that_have_both(tmp_path):
    study(tmp_path / "runs", {"none": [*DENSE, 130.0], "l1-0.9": [50.0, 60.0, 70.0], "random-0.5": L1})
    study(tmp_path / "runs", {"l1-0.9": [60.0, 66.0, 90.0, 1.0]}, prune_cuts=8)
    study(tmp_path / "runs", {"l1-0.9": [60.0, 70.0]}, prune_head=False)
    study(tmp_path / "runs", {"l1-0.8": L1}, prune_scope="erk")  # there is no plain cut of this rate
    for options in ({"prune_cuts": 1}, {"prune_cuts": 8}):  # a seed without a dense run
        write_run(tmp_path / "runs", arm="l1-0.9", seed=5, score=1.0, **options)
    tables = conclude(tmp_path / "runs")
    variant, whole = (r for _, r in tables["variants"].iterrows())
    assert (whole.arm, whole.pairs, whole.after_cut) == ("l1-0.9 without output layers", 2, pytest.approx(10 / 55))
    assert (variant.arm, variant.against, variant.pairs) == ("l1-0.9 in 8 cuts until 0.8", "l1-0.9", 3)
    # +10 +6 +20: mean 12, standard deviation sqrt((4 + 36 + 64) / 2); of l1-0.9, whose mean is 60
    assert variant.after_cut == pytest.approx(12 / 60) and variant.after_cut_points == pytest.approx(12)
    assert variant.after_cut_points_high == pytest.approx(12 + 4.302653 * np.sqrt(52 / 3))
    assert variant.family == 2 and row(tables["changes"], "random-0.5").family == 4  # with l1 0.8 erk and both variants
    assert not [name for name in tables["variants"] if name.startswith("shock")]
    assert row(tables["changes"], "l1-0.9").role == "positive control"
    assert row(tables["changes"], variant.arm).role == variant.role == "exploratory"
    told = text(tmp_path / "report of runs")
    assert "- Exploratory: l1 at 0.9 in 8 cuts until 0.8 against l1 at 0.9: +20.0 % (95 % interval" in told
    assert "<h3>Variants against a plain cut</h3>" in (tmp_path / "report of runs" / "index.html").read_text()


def test_a_small_dense_network_is_a_control_and_no_twin(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.8": L1})
    study(tmp_path / "runs", {"none": [80.0, 90.0]}, hidden_size=83, device_name="another CPU")  # no past is compared
    tables = conclude(tmp_path / "runs")
    roles = {"none": "dense", "none, hidden_size 83": "control", "l1-0.8": "exploratory"}
    assert dict(zip(tables["returns"].arm, tables["returns"].role, strict=True)) == roles
    assert tables["changes"].arm.tolist() == ["l1-0.8"] and row(tables["returns"], "none").after_cut == 110
    assert list(named(tables).values()) == ["missing: no run of seed 3; seeds 1, 2, 3 are in the study"]


def test_a_larger_dense_network_is_no_control_of_a_small_study(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.8": L1}, width=0.5)
    study(tmp_path / "runs", {"none": DENSE})
    told = conclude(tmp_path / "runs")["returns"]
    assert dict(zip(told.study, told.role, strict=True)).keys() == {
        "DQN, SpaceInvadersNoFrameskip-v4, width 0.5",
        "DQN, SpaceInvadersNoFrameskip-v4, width 1.0",
    }
    assert set(told.role) == {"dense", "exploratory"}


def test_a_run_that_is_there_twice_is_counted_once_and_named(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    copied = tmp_path / "runs" / "A copy"  # the first in the order of paths, but fewer arms can be paired with it
    write_run(copied, arm="none", seed=1, score=500.0, num_threads=4)
    tables = conclude(tmp_path / "runs")
    assert row(tables["returns"], "none").seeds == 3 and row(tables["returns"], "none").after_cut == 110
    ((name, reason),) = named(tables).items()
    assert str(copied) in name and reason.startswith("counted once: of none, seed 1, ") and reason.endswith(" is counted")


def test_of_two_whole_sets_of_a_seed_one_is_counted_and_not_a_run_of_each(tmp_path):
    for dense, arm, script in (("A", "b", "old"), ("B", "a", "new")):  # the first in the order of names are no pair
        write_run(tmp_path / "runs", arm="none", run_name=dense, source_sha256=script)
        write_run(tmp_path / "runs", arm="l1-0.5", run_name=arm, source_sha256=script)
    tables = conclude(tmp_path / "runs")
    assert row(tables["changes"], "l1-0.5").pairs == 1
    assert all(reason.startswith("counted once: ") for reason in named(tables).values()) and len(named(tables)) == 2


def test_a_dense_run_of_another_width_is_named_where_it_is_all_there_is(tmp_path):
    study(tmp_path / "runs", {"none": DENSE}, hidden_size=83)
    study(tmp_path / "runs", {"l1-0.8": L1})
    (told,) = (reason for name, reason in named(conclude(tmp_path / "runs")).items() if "l1-0.8__s1" in name)
    assert told.startswith("not compared: it differs from the dense run ") and "hidden_size 83 -> 512" in told


def test_a_fork_with_seed_0_is_no_baseline(tmp_path):
    study(tmp_path / "runs", {"none": [100.0, 110.0], "none-fork0": [104.0, 114.0]})
    assert row(conclude(tmp_path / "runs")["changes"], "A/A").after_cut_points == 4


def test_a_stray_table_hides_no_runs_below_it(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1})
    (runs / "eval.csv").write_text("a\n")
    tables = conclude(runs)
    assert row(tables["changes"], "l1-0.5").pairs == 3 and named(tables)["runs"].startswith("broken: config.json is missing")
