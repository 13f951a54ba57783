"""CleanRL's own runs: taken out of their TensorBoard files, and set beside the dense runs of the declared study."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from analysis import baseline, paired
from checks import cleanrl_returns, first_million
from tests.run_folders import conclude, study, write_run

OPTIONS = {"exp_name": "ppo_atari", "env_id": "SpaceInvadersNoFrameskip-v4", "total_timesteps": 2_000_000}


def cleanrl_run(folder, seed: int = 1, games=((800, 35.0), (800, 110.0), (1_999_000, 480.0)), end: int = 1_999_872, **options):
    """The TensorBoard file that CleanRL's script writes."""
    writer = SummaryWriter(str(folder))
    rows = "\n".join(f"|{name}|{value}|" for name, value in (OPTIONS | {"seed": seed} | options).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
    for step, value in games:
        writer.add_scalar("charts/episodic_return", np.array([value]), step)
    writer.add_scalar("charts/SPS", 290, end)
    writer.close()
    return folder


def take(monkeypatch, out, *folders) -> pd.DataFrame:
    monkeypatch.setattr(sys, "argv", ["cleanrl_returns", "--out", str(out), *map(str, folders)])
    cleanrl_returns.main()
    return pd.read_csv(out)


def test_every_game_of_cleanrls_runs_comes_into_the_table_also_two_of_one_step(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cleanrl.csv.gz"
    dqn = cleanrl_run(tmp_path / "b", 2, exp_name="dqn_atari", num_envs=1, start_e=1, hf_entity="")
    table = take(monkeypatch, out, cleanrl_run(tmp_path / "a"), dqn)
    assert "dqn, seed 2: 3 games\n" in capsys.readouterr().out
    assert table.algorithm.tolist() == ["dqn"] * 3 + ["ppo"] * 3 and table.seed.tolist() == [2] * 3 + [1] * 3
    assert table.global_step.tolist() == [800, 800, 1_999_000] * 2 and table.episodic_return.tolist() == [35, 110, 480] * 2
    table = take(monkeypatch, out, cleanrl_run(tmp_path / "again", games=[(800, 5.0)]))  # replaces its seed, and that alone
    assert table.episodic_return.tolist() == [35, 110, 480, 5]
    before = out.read_bytes()
    take(monkeypatch, out, tmp_path / "again")
    assert out.read_bytes() == before


def test_the_first_million_takes_an_unfinished_run_of_cleanrl_too(tmp_path):
    run = cleanrl_run(tmp_path / "a", 3, games=[(800, 35.0), (1_000_000, 90.0), (1_000_008, 480.0)], end=1_000_448)
    games = first_million.games(run, "CleanRL")
    assert games.to_dict("list") == {
        "seed": [3, 3], "global_step": [800, 1_000_000], "episodic_return": [35, 90], "program": ["CleanRL"] * 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"end": 1_500_000, "games": ((800, 35.0),)}, "error: RUN must be finished, got {folder} at step 1,500,000"),
        (
            {"env_id": "PongNoFrameskip-v4"},
            "error: RUN must have the study's env_id, SpaceInvadersNoFrameskip-v4, got PongNoFrameskip-v4: {folder}",
        ),
        ({"total_timesteps": 10_000_000}, "error: RUN must have the study's total_timesteps, 2000000, got 10000000: {folder}"),
        ({"learning_rate": 0.5}, "error: RUN must have the study's learning_rate, 0.00025, got 0.5: {folder}"),
        ({"exp_name": "c51_atari"}, "error: RUN must be of dqn_atari.py or ppo_atari.py, got c51_atari: {folder}"),
        ({"games": ()}, "error: RUN must be the folder of a run of CleanRL, got {folder}"),
    ],
)
def test_a_run_that_is_not_whole_or_of_another_design_is_refused_in_one_line(tmp_path, monkeypatch, capsys, given, said):
    folder, out = cleanrl_run(tmp_path / "run", **given), tmp_path / "cleanrl.csv.gz"
    with pytest.raises(SystemExit) as end:
        take(monkeypatch, out, folder)
    assert end.value.code == 2 and not out.exists()
    assert capsys.readouterr().err.splitlines()[-1] == said.format(folder=folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: RUN must be at least one run folder, got none"),
        (["{tmp}/nowhere"], "error: RUN must be the folder of a run of CleanRL, got {tmp}/nowhere"),
        (["{tmp}"], "error: RUN must be the folder of a run of CleanRL, got {tmp}"),
        (["{tmp}", "--out", "{tmp}/other.csv.gz"], "error: --out must be a table of this program, got {tmp}/other.csv.gz"),
        (["{tmp}", "--out", "{tmp}/cleanrl.csv"], "error: --out must end in .csv.gz, got {tmp}/cleanrl.csv"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "other.csv.gz")
    with pytest.raises(SystemExit) as end:
        take(monkeypatch, tmp_path / "cleanrl.csv.gz", *(word.format(tmp=tmp_path) for word in words))
    assert end.value.code == 2 and capsys.readouterr().err == f"{said.format(tmp=tmp_path)}\n"


def test_the_interval_of_a_difference_is_welchs():
    difference, low, high = paired.welch_interval(np.array([10.0, 12.0, 14.0]), np.array([1.0, 2.0]))
    # variances of the means 4/3 and 1/4, Satterthwaite's degrees of freedom 2.635; t quantile 3.4493
    half = 3.4493 * (4 / 3 + 1 / 4) ** 0.5
    assert (difference, low, high) == pytest.approx((10.5, 10.5 - half, 10.5 + half), abs=1e-2)
    test = stats.ttest_ind([10, 12, 14], [1, 2], equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((test.low, test.high))
    assert np.isnan(paired.welch_interval(np.array([1.0, 1.0]), np.array([2.0, 2.0]))[1])  # no spread, no interval
    assert np.isnan(paired.welch_interval(np.array([1.0, 3.0]), np.array([2.0]))[1])


def test_the_dense_runs_of_the_declared_study_stand_beside_cleanrls(tmp_path, monkeypatch):
    runs = study(tmp_path / "runs", {"none": [300.0, 310.0, 320.0], "none-fork1": [300.0, 310.0, 350.0]}, "ppo")
    write_run(runs, "ppo", "l1-0.5", finished=False)  # it comes first, and has no cut yet
    games = [("ppo", s, step, (90 if step <= 1000 else 300) + s) for s in (1, 2) for step in range(10, 2001, 10)]
    file = tmp_path / "cleanrl.csv.gz"
    pd.DataFrame(games, columns=["algorithm", "seed", "global_step", "episodic_return"]).to_csv(file, index=False)
    monkeypatch.setattr(baseline, "CLEANRL", file)
    table = conclude(runs)["baseline"].set_index("program")
    ours, theirs, difference = table.loc["this project, dense"], table.loc["CleanRL"], table.loc["difference"]
    assert (ours.seeds, theirs.seeds) == (3, 2)
    assert (ours.half, theirs.half, difference.half) == (102, 91.5, 10.5)
    # seed 3 is the mean of its two dense runs, 335; 300 310 335: deviation 18.03, t(2) 4.3027
    assert (ours.after_cut, theirs.after_cut, difference.after_cut) == pytest.approx((315, 301.5, 13.5))
    assert ours.after_cut_high == pytest.approx(315 + 4.3027 * 18.0278 / 3**0.5, abs=1e-2)
    assert "CleanRL, n = 2" in (tmp_path / "report of runs" / "training_PPO-SpaceInvadersNoFrameskip-v4.svg").read_text()

    other = study(tmp_path / "other", {"none": [300.0, 310.0]}, "ppo", num_envs=4)
    assert "baseline" not in conclude(other)
    silent = study(tmp_path / "silent", {"none": [300.0, 310.0]}, "ppo", training=[])
    assert np.isnan(conclude(silent)["baseline"].set_index("program").after_cut["this project, dense"])
