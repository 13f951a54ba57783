"""The sentences of a report: the declared answer, why there may be none, and what no skill scores."""

import json
import re

import numpy as np
import pytest

from analysis import figures, paired
from tests.run_folders import CONTROL, DENSE, L1, NO_SKILL, conclude, named, row, study, text, write_run

SURE = [99.0, 111.0, 119.0]
"""scores of an arm that differs by a hundredth from DENSE"""
LOST = [58.0, 72.0, 80.0]
"""scores of an arm that loses a third"""


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: [])


def said(tmp_path, arms: dict, **options) -> str:
    no_skill = {"no_skill": options.pop("no_skill")} if "no_skill" in options else {}
    conclude(study(tmp_path / "runs", arms, **options), **no_skill)
    return text(tmp_path / "report of runs")


QUESTION = "- Does l1 at 0.5 lose less than 10 % of the return after the cut? "


# -------------------------------------------------------------------------------------------------------------- the answer
@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (SURE, "Yes: a loss of 10 % or more is excluded. "),
        (LOST, "No: a loss of 10 % or more is seen. "),
        (L1, "Open: a loss of 10 % or more is neither excluded nor seen. "),
    ],
)
def test_the_answer_is_yes_or_no_only_where_the_whole_interval_is_on_one_side_of_the_margin(scores, told, tmp_path):
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": scores} | CONTROL)
    assert QUESTION + told + "Return after the cut of l1 at 0.5: " in sentences
    interval = r"l1 at 0.5: [+-][\d.]+ % \(95 % interval ([+-][\d.]+) to ([+-][\d.]+), 3 seeds\)\."
    low, high = map(float, re.search(interval, sentences).groups())
    assert (low > -10, high < -10) == ("Yes" in told, "No:" in told)


def test_the_declared_quantity_is_the_return_after_the_cut_and_not_the_last_network(tmp_path):
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": SURE} | CONTROL, final=[1.0, 900.0])
    assert "Yes: a loss of 10 % or more is excluded" in sentences
    assert row(conclude(tmp_path / "runs")["changes"], "l1-0.5").final == 0


def test_fewer_than_three_seeds_have_no_answer(tmp_path):
    arms = {"none": DENSE[:2], "l1-0.5": LOST[:2], "l1-0.8": LOST[:2]} | {arm: scores[:2] for arm, scores in CONTROL.items()}
    sentences = said(tmp_path, arms)
    assert QUESTION + "There is no answer: it takes 3 seeds, and there are 2. Return after the cut" in sentences
    assert " is seen" not in sentences and " is excluded" not in sentences


def test_an_answer_from_fewer_seeds_than_planned_is_one_so_far(tmp_path):
    arms = {"none": [*DENSE, 105.0], "l1-0.5": [*SURE, 104.0]} | CONTROL
    told = "Yes, so far (4 of 6 planned seeds): a loss of 10 % or more is excluded. "
    assert QUESTION + told in said(tmp_path, arms, algorithm="ppo")
    arms = {arm: scores + scores for arm, scores in ({"none": DENSE, "l1-0.5": SURE} | CONTROL).items()}
    assert QUESTION + "Yes: a loss of 10 % or more is excluded. " in said(tmp_path / "six", arms, algorithm="ppo")
    told = "Yes, so far (some seeds have fewer dense and A/A runs than others): a loss"
    assert QUESTION + told in said(tmp_path / "some", arms | {"none-fork1": DENSE}, algorithm="ppo")
    assert QUESTION + "Yes: a loss" in said(tmp_path / "all", arms | {"none-fork1": DENSE + DENSE}, algorithm="ppo")


def test_an_answer_from_more_seeds_than_planned_says_how_many(tmp_path):
    sentences = said(tmp_path, {"none": [*DENSE, 105.0], "l1-0.5": [*SURE, 104.0]} | CONTROL)
    assert QUESTION + "Yes, with 4 seeds where 3 were planned: a loss of 10 % or more is excluded. " in sentences


def test_a_seed_whose_agent_is_stuck_takes_the_answer_and_a_seed_without_a_pair_is_named_beside_it(tmp_path):
    runs = study(tmp_path / "runs", {"none": [*DENSE, 105.0], "l1-0.5": SURE} | CONTROL)
    write_run(runs, arm="l1-0.5", seed=4, finished=False)
    conclude(runs)
    told = text(tmp_path / "report of runs")
    assert QUESTION + "Yes: " in told and ", 3 seeds). It has no pair in seed 4.\n" in told
    write_run(runs, arm="none", seed=5)
    stuck = [(step, 105.0 if step <= 1000 else 1.0) for step in range(10, 1801, 10)]  # no game in the last two tenths
    write_run(runs, arm="l1-0.5", seed=5, training=stuck)
    conclude(runs)
    told = text(tmp_path / "report of runs")
    assert QUESTION + "There is no answer: it would leave out seed 5: no game ended in a tenth of the steps" in told
    assert ", 3 seeds). It has no pair in seed 4, 5.\n" in told


def test_a_fork_without_a_return_takes_its_seed_with_it(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": SURE} | CONTROL)
    write_run(runs, arm="l1-0.5-fork1", seed=3, training=[(step, 103.0) for step in range(10, 1801, 10)])
    assert row(conclude(runs)["changes"], "l1-0.5").pairs == 2
    assert "No return after the cut of l1 at 0.5 (fork 1 of seed 3): no game ended" in text(tmp_path / "report of runs")


def test_one_seed_has_numbers_and_no_interval_and_the_sentences_say_why(tmp_path):
    sentences = said(tmp_path, {"none": [100.0], "l1-0.5": [90.0], "none-fork1": [100.0]})
    assert "it takes 3 seeds, and there is 1. Return after the cut of l1 at 0.5: -10.0 % in one seed." in sentences
    assert "An arm with one seed has no interval: how far seeds differ is unknown" in sentences
    assert "interval -" not in sentences


def test_where_dense_is_not_clearly_above_no_skill_there_is_no_answer(tmp_path):
    floor = NO_SKILL.replace("FIRE,0.01,100,50,45,55", "FIRE,0.01,100,98,80,116")  # dense: 110, 85 to 135
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": SURE} | CONTROL, no_skill=floor)
    told = "There is no answer: dense (110, 95 % interval 85.2 to 135) is not clearly above the best that no skill scores (98"
    assert told in sentences


def test_where_no_skill_was_not_measured_there_is_no_answer(tmp_path):
    floor = NO_SKILL.replace("SpaceInvaders", "Breakout")
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": SURE} | CONTROL, no_skill=floor)
    assert "There is no answer: what no skill scores in SpaceInvadersNoFrameskip-v4 was not measured." in sentences
    first_screen = (tmp_path / "report of runs" / "index.html").read_text()
    assert "What no skill scores in SpaceInvadersNoFrameskip-v4 was not measured. Return after the cut" in first_screen


def test_a_positive_control_that_shows_no_loss_takes_the_answer_and_is_named(tmp_path):
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": SURE, "l1-0.9": [108.0, 95.0, 140.0]})
    told = r"There is no answer: no positive control shows a loss, so that none could be seen here \(l1 at 0.9: \+3.9 % \("
    assert re.search(told, sentences)
    one_of_two = {"none": DENSE, "l1-0.5": SURE, "l1-0.9": [108.0, 95.0, 140.0], "random-0.9": LOST}
    assert QUESTION + "Yes: " in said(tmp_path / "two", one_of_two)
    # -2.5 -4.5 -3.5: standard error .577; alone its interval ends below 0 (t 4.303), as one of four it does not (t 8.86)
    luck = {"none": DENSE, "l1-0.5": SURE, "random-0.9": [97.5, 105.5, 116.5]}
    assert QUESTION + "Yes: " in said(tmp_path / "alone", luck)
    luck |= {arm: [108.0, 95.0, 140.0] for arm in ("l1-0.9", "l1-0.92", "random-0.92")}
    assert "There is no answer: no positive control shows a loss" in said(tmp_path / "luck", luck)


def test_a_variant_at_the_rate_of_a_positive_control_may_lose_nothing(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": SURE} | CONTROL)
    study(runs, {"l1-0.9": SURE}, prune_cuts=8)
    conclude(runs)
    assert QUESTION + "Yes: " in text(tmp_path / "report of runs")


def test_without_a_positive_control_another_arm_has_to_show_that_a_loss_can_be_seen(tmp_path):
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": SURE, "random-0.5": [98.0, 112.0, 119.0]})
    told = "There is no answer: no positive control has a return after the cut in 3 seeds, and no other arm shows a loss, so"
    assert told in sentences
    other = study(tmp_path / "other" / "runs", {"none": DENSE, "l1-0.5": SURE, "random-0.5": LOST})
    conclude(other)
    assert QUESTION + "Yes: " in text(tmp_path / "other" / "report of runs")


def test_the_declared_study_is_that_of_the_default_options_whatever_folder_is_given(tmp_path):
    arms = {"none": DENSE, "l1-0.5": SURE} | CONTROL
    runs = study(tmp_path / "runs", arms, total_timesteps=100_000)
    conclude(runs)
    wide = study(tmp_path / "wide" / "runs", arms, width=2.0)
    study(wide, {"none": DENSE})  # a small dense network beside it
    conclude(wide)
    assert "- These runs are not the declared study (width 2.0).\n" in text(tmp_path / "wide" / "report of runs")
    told = "- These runs are not the declared study (total_timesteps 100000).\n"
    assert told in text(tmp_path / "report of runs")
    study(runs, arms, eval_episodes=100)  # the number of games is no part of it
    study(runs, arms, env_id="PongNoFrameskip-v4")
    study(runs, arms, "ppo")
    table = conclude(runs)["changes"]
    declared = table[table.role == "declared"]
    assert declared.study.tolist() == [
        "DQN, SpaceInvadersNoFrameskip-v4, total_timesteps 2000000",
        "PPO, SpaceInvadersNoFrameskip-v4",
    ]
    assert told in text(tmp_path / "report of runs") and set(table[table.arm == "l1-0.9"].role) == {"positive control"}


def test_seeds_with_other_numbers_of_evaluation_games_are_one_study(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": SURE} | CONTROL)
    for seed, episodes in ((1, 20), (2, 30)):
        for folder in runs.glob(f"*__s{seed}"):
            config = json.loads((folder / "config.json").read_text())
            config["options"] |= {"eval_episodes": episodes}
            (folder / "config.json").write_text(json.dumps(config))
    conclude(runs)
    told = text(tmp_path / "report of runs")
    assert told.count(QUESTION) == 1 and "Yes: " in told and "options of all runs off their default: none; " in told


def test_exploratory_runs_with_a_dense_run_of_their_own_do_not_take_the_declared_pair_away(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": SURE} | CONTROL)
    others = {"none": [101.0], "l1-0.9": LOST[:1], "random-0.5": LOST[:1], "random-0.8": LOST[:1]}
    study(tmp_path / "later", others, source_sha256="0" * 64)
    tables = conclude(runs, tmp_path / "later")
    assert QUESTION + "Yes: " in text(tmp_path / "report of runs")
    told = named(tables)["SpaceInvadersNoFrameskip-v4__dqn_atari_prune__random-0.8__s1"]
    assert told.startswith("not compared: it differs from the dense run ") and "text of script" in told


def test_what_tells_only_of_the_machine_and_an_int_for_a_float_split_no_study(tmp_path):
    arms = {"none": DENSE, "l1-0.5": SURE} | CONTROL
    runs = study(tmp_path / "runs", arms)
    for folder in runs.glob("*__s3"):
        config = json.loads((folder / "config.json").read_text())
        config["options"] |= {"cuda": False, "torch_deterministic": False, "tau": 1}
        (folder / "config.json").write_text(json.dumps(config))
    conclude(runs)
    assert QUESTION + "Yes: " in text(tmp_path / "report of runs")


# --------------------------------------------------------------------------------------------------- exploratory sentences
def test_exploratory_intervals_are_simultaneous_and_a_loss_is_seen_only_by_them(tmp_path):
    # -20 -30 -25: mean -25, standard error 5 / sqrt(3) = 2.887; t(2) at 2.5 % is 4.303, at 2.5 % / 6 it is 10.886
    arms = {"none": DENSE, "l1-0.8": [80.0, 80.0, 95.0]}
    conclude(study(tmp_path / "one" / "runs", arms))
    assert re.search(
        r"Exploratory: l1 at 0.8: -22.7 % .*\. A loss of \d+\.\d % or more is seen\.", text(tmp_path / "one" / "report of runs")
    )
    other = {f"random-{rate}": [DENSE[0] - 1, DENSE[1] + 1, DENSE[2] - 0.5] for rate in (0.1, 0.3, 0.5, 0.8)}
    table = conclude(study(tmp_path / "many" / "runs", arms | other))["changes"]
    alone = row(table, "l1-0.8")
    assert alone.family == 6  # five arms and the trend of random
    assert alone.after_cut_points_high == pytest.approx(-25 + 4.302653 * 5 / np.sqrt(3))
    assert alone.simultaneous_points_high == pytest.approx(-25 + 10.8859 * 5 / np.sqrt(3), rel=1e-4)
    many = text(tmp_path / "many" / "report of runs")
    assert "simultaneous over 6 comparisons, 3 seeds). A loss above " in many and " is seen" not in many


def test_where_dense_returns_are_below_0_differences_are_told_in_points(tmp_path):
    sentences = said(tmp_path, {"none": [-20.0, -18.0, -19.0], "l1-0.8": [-21.0, -19.0, -20.5]})
    assert re.search(r"l1 at 0.8: -1.2 points \(95 % interval -1.9 to -0.4, 3 seeds\). A loss of 0.4 points or more", sentences)
    table = (tmp_path / "report of runs" / "changes.md").read_text()
    assert table.count("-1.2 points | -1.9 to -0.4 points") == 3  # return after the cut, late return and final network


def test_a_quantity_of_fewer_pairs_than_the_return_after_the_cut_keeps_its_unit(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE[:2], "l1-0.8": [90.0, 99.0]}, eval_episodes=0)
    write_run(runs, arm="none", seed=3, score=120.0, final=[100.0, 100.0])
    write_run(runs, arm="l1-0.8", seed=3, score=108.0, final=[90.0, 90.0])
    for folder in [*runs.glob("*__s1*"), *runs.glob("*__s2*")]:  # without evaluation games
        config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
        (folder / "summary.json").write_text(json.dumps(summary | {"eval": {}}))
        (folder / "eval.csv").unlink()
        assert config["options"]["eval_episodes"] == 0
    table = row(conclude(runs)["changes"], "l1-0.8")
    assert table.pairs == 3 and table.final == pytest.approx(-0.1)
    shown = (tmp_path / "report of runs" / "changes.md").read_text()
    assert "| -10.0% |" in shown and "| -10.0 points |" not in shown


def test_returns_below_0_before_the_cut_are_enough_for_points(tmp_path):
    for arm, scores in {"none": [1.0, 1.2, 1.1], "l1-0.8": [0.3, 0.5, 0.2]}.items():
        for seed, score in enumerate(scores, 1):
            training = [(step, -20.0 if step <= 1000 else score) for step in range(10, 2001, 10)]
            write_run(tmp_path / "runs", arm=arm, seed=seed, training=training)
    conclude(tmp_path / "runs")
    assert "Exploratory: l1 at 0.8: -0.8 points (95 % interval " in text(tmp_path / "report of runs")


def test_seeds_that_differ_all_alike_are_no_certainty_and_an_arm_at_rate_0_is_reported(tmp_path):
    sentences = said(tmp_path, {"none": [0.0, 0.0, 0.0], "l1-0.5": [0.0, 0.0, 0.0], "l1-0": [0.0, 0.0, 0.0]})
    assert "Dense: return after the cut 0.0; 3 seeds." in sentences
    assert "Exploratory: l1 at 0: +0.0 points in each of 3 seeds.\n" in sentences
    assert "There is no answer: dense (0.0) is not clearly above" in sentences


def test_an_arm_that_equals_its_twins_to_the_bit_has_no_answer(tmp_path):
    told = "No answer: the share of dense has no interval. Return after the cut of l1 at 0.5: +0.0 % in each of 3 seeds."
    assert QUESTION + told in said(tmp_path, {"none": DENSE, "l1-0.5": DENSE} | CONTROL)


def test_an_exploratory_arm_with_stuck_agents_excludes_no_loss_and_shows_no_gain(tmp_path):
    arms = {"none": [*DENSE, 105.0], "l1-0.5": [*SURE, 104.0], "random-0.8": SURE, "random-0.6": [150.0, 165.0, 182.0]}
    runs = study(tmp_path / "runs", arms | {"l1-0.9": [40.0, 52.0, 45.0, 41.0]})
    for arm in ("random-0.8", "random-0.6"):  # in seed 4 no game ends after the cut
        write_run(runs, arm=arm, seed=4, training=[(step, 104.0) for step in range(10, 1001, 10)])
    tables = conclude(runs)
    sentences = text(tmp_path / "report of runs")
    left_out = r"3 seeds\)\. No loss is excluded: it has no return after the cut in 1 seed more\.\n"
    for what in (r"random at 0\.8: -", r"random at 0\.6: \+", r"trend of random over 0 0\.6 0\.8 per 0\.1 of rate: "):
        assert re.search(f"{what}.*{left_out}", sentences)
    assert row(tables["changes"], "random-0.8").simultaneous_low > -0.1  # alone, these three seeds would exclude a loss


def test_the_noise_says_how_many_seeds_the_declared_test_needs(tmp_path):
    sentences = said(tmp_path, {"none": DENSE, "l1-0.5": L1, "random-0.5": [70.0, 90.0, 95.0]})
    told = r"Noise, from arms by seeds: from seed to seed, arm - 0.9 x dense has a standard deviation of [\d.]+ % of dense "
    told += r"\(95 % interval [\d.]+ to [\d.]+, 4 degrees of freedom\)\. "
    told += r"For 80 % power where nothing is lost, a test of l1 at 0.5 needs \d+ seeds \(\d+ to \d+\)\. "
    middle, low, high = map(int, re.search(told + r"With 3 seeds it has (\d+) % \((\d+) to (\d+)\)\.", sentences).groups())
    assert low < middle < high
    # 90 105 96 - 0.9 (100 110 120) = 0 6 -12: mean -2, squares 4 64 100; sqrt(168 / 2) / 110 = 8.3 %
    assert (
        "Noise, from the pairs of l1-0.5: from seed to seed, arm - 0.9 x dense has a standard deviation of 8.3 %" in sentences
    )
    # l1 at 0.5 as the mean of two forks, dense as that of three runs: of a run's deviation, sqrt(1/2 + 0.9^2 / 3) are left
    arms = {"none": DENSE, "none-fork1": [104.0, 98.0, 125.0], "none-fork2": [95.0, 118.0, 122.0]}
    arms |= {"l1-0.5-fork1": L1, "l1-0.5-fork2": [96.0, 100.0, 110.0]}
    noise = conclude(study(tmp_path / "forks", arms))["noise"].set_index("source").deviation
    scores = np.array([*arms.values()])
    means = np.repeat([scores[:3].mean(), scores[3:].mean()], [9, 6])
    labels, seeds = np.repeat(["none", "l1-0.5"], [9, 6]), np.tile([1, 2, 3], 5)
    for source, (deviation, *_) in paired.run_deviation(scores.ravel() / means, list(labels), list(seeds)).items():
        assert noise[source] == pytest.approx(np.sqrt(1 / 2 + 0.9**2 / 3) * deviation)
    one = said(tmp_path / "one", {"none": [100.0], "none-fork1": [104.0], "l1-0.5": [90.0]})
    assert "Noise, from equal continuations: " in one and "1 degree of freedom). " in one


def test_what_the_runs_computed_in_and_on_is_told_with_the_seeds_where_it_differs(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE[:1], "l1-0.5": L1[:1]})
    conclude(runs)
    assert "; fp32 on a CPU, threads 1, torch 2.13.0.\n" in text(tmp_path / "report of runs")
    newer = study(tmp_path / "newer", {"none": DENSE[:2], "l1-0.5": L1[:2]}, precision="bf16", device_name="a newer CPU")
    for folder in newer.glob("*__s2*"):
        folder.rename(runs / folder.name)
    conclude(runs)
    told = "; fp32 on a CPU, threads 1, torch 2.13.0 (seeds 1); bf16 on a newer CPU, threads 1, torch 2.13.0 (seeds 2).\n"
    assert told in text(tmp_path / "report of runs")


# ---------------------------------------------------------------------------------------------------------------- no skill
def test_what_no_skill_scores_is_told_and_every_return_that_is_not_clearly_above_it_is_marked(tmp_path):
    runs = study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1, "random-0.8": [50.0, 54.0, 56.0]}, after=[10.0, 70.0])
    tables = conclude(runs)
    sentences = text(tmp_path / "report of runs")
    assert (
        "uniform random play scores 30.0 (95 % interval 25.0 to 35.0, 100 games). The best held action, FIRE, scores 50.0 ("
        in sentences
    )
    assert (
        row(tables["returns"], "random-0.8").not_above_no_skill
        == "return after the cut, late return, final network, right after the cut"
    )
    assert row(tables["returns"], "none").not_above_no_skill == "right after the cut"
    told = "dense (right after the cut); l1 at 0.5 (right after the cut); random at 0.8 (return after the cut, late return, "
    assert f"Returns that are not clearly above no skill: {told}" in sentences
    assert tables["no_skill"].policy.tolist() == ["random", "FIRE"]
    low = study(tmp_path / "low", {"none": DENSE, "none-fork1": DENSE, "l1-0.5": L1}, before=[10.0, 12.0])
    conclude(low)
    assert "Returns that are not clearly above no skill: dense (before the cut).\n" in text(tmp_path / "report of low")


def test_a_network_that_several_runs_share_is_evaluated_once(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "none-fork1": DENSE[:2], "l1-0.5": L1})
    found = conclude(tmp_path / "runs")["evaluations"]
    counts = {(row.arm, row.moment): row.networks for row in found.itertuples()}
    dense = {("none", "before_prune"): 3, ("none", "after_prune"): 3, ("none", "final"): 5}
    assert counts == dense | {("l1-0.5", "after_prune"): 3, ("l1-0.5", "final"): 3}


def test_an_evaluation_of_a_held_action_is_marked(tmp_path):
    study(tmp_path / "runs", {"none": DENSE, "l1-0.5": L1}, shares={"final": 0.4, "after_prune": 0.4})
    study(tmp_path / "runs", {"random-0.5": L1}, shares={"final": 0.4, "after_prune": 0.991})
    tables = conclude(tmp_path / "runs")
    told = "Evaluations that are, or may be, of held actions: random at 0.5 right after the cut (3 of 3 networks).\n"
    assert told in text(tmp_path / "report of runs")
    found = tables["evaluations"][tables["evaluations"].arm == "random-0.5"].set_index("moment")
    assert found.commonest_action.to_dict() == {"after_prune": 0.991, "final": 0.4}  # before the cut it is the dense network
    assert found.distinct.tolist() == [2, 2]


def test_many_games_of_which_few_are_distinct_are_marked_where_the_actions_were_not_recorded(tmp_path):
    games = {"before": list(range(50, 100)), "final": list(range(50, 100))}  # games of one score are equal in length here
    study(tmp_path / "runs", {"none": [75.0], "l1-0.5": [75.0]}, **games, after=list(range(60, 110)))
    study(tmp_path / "runs", {"random-0.8": [50.0]}, **games, after=[60.0, 61.0] * 25)
    conclude(tmp_path / "runs")
    told = "Evaluations that are, or may be, of held actions: random at 0.8 right after the cut (perhaps: only 2 of 50 "
    told += "games are distinct).\n"
    assert told in text(tmp_path / "report of runs")


def test_runs_that_recorded_their_actions_do_not_hide_those_that_did_not(tmp_path):
    games = {"before": list(range(50, 100)), "final": list(range(50, 100))}
    study(tmp_path / "runs", {"none": [75.0] * 2} | {"l1-0.8": [50.0]}, **games, after=[60.0, 61.0] * 25)
    recorded = study(tmp_path / "two", {"l1-0.8": [75.0] * 2}, **games, after=list(range(60, 110)), shares={"after_prune": 0.4})
    next(recorded.glob("*__s2")).rename(tmp_path / "runs" / "second")
    conclude(tmp_path / "runs")
    told = "l1 at 0.8 right after the cut (perhaps: only 2 of 50 games are distinct)"
    assert told in text(tmp_path / "report of runs")


def test_scores_below_100_keep_a_decimal(tmp_path):
    floor = NO_SKILL.replace("random,1,100,30,25,35", "random,1,100,-20.4,-20.8,-20")
    sentences = said(tmp_path, {"none": [0.4, 0.6]}, no_skill=floor)
    assert "uniform random play scores -20.4 (95 % interval -20.8 to -20.0, 100 games)" in sentences
    assert "Dense: return after the cut 0.5 (95 % interval -0.8 to 1.8); 2 seeds." in sentences  # .5 +- 12.706 * .1


def test_a_cut_after_training_has_no_steps_after_it_and_the_sentence_says_so(tmp_path):
    folder = write_run(tmp_path / "runs")
    curves = (folder / "curves.csv").read_text().replace("\n1000,prune/sparsity,0.0\n", "\n")
    first_of_disk = curves.index("2000,disk/")
    (folder / "curves.csv").write_text(f"{curves[:first_of_disk]}2000,prune/sparsity,0.0\n{curves[first_of_disk:]}")
    conclude(tmp_path / "runs")
    assert "No return after the cut of dense (seed 1): no steps come after it.\n" in text(tmp_path / "report of runs")
