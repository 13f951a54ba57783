"""The statistics of the report: by hand, and over simulated studies whose truth is known."""

import numpy as np
import pytest
import tyro

from analysis import paired
from checks.simulate_studies import OWN, Args, coverage, main, one_network, power

T2 = 4.302653  # 97.5 % point of the t distribution with 2 degrees of freedom


def test_a_t_interval_is_that_of_the_seeds_by_hand_and_one_seed_has_none():
    # mean 2.5; squares 2.25 + .25 + .25 + 2.25 = 5, / 3, root 1.29099; t(3, 97.5 %) = 3.18245; 3.18245 * 1.29099 / 2 = 2.05426
    assert paired.t_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 2.5 - 2.05426, 2.5 + 2.05426), abs=1e-4)
    mean, low, high = paired.t_interval([7.0])
    assert mean == 7 and np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize("alike", [[0.0, 0.0, 0.0], [-20.4 + 20.3, -20.5 + 20.4, -21.0 + 20.9], [7.0]])
def test_samples_that_do_not_differ_have_no_interval(alike):
    assert np.isnan(paired.t_interval(alike)[1:]).all()


@pytest.mark.parametrize("share", [0.0, -1.0, -0.3])
def test_a_share_that_is_the_same_in_every_seed_has_no_interval(share):
    dense = np.array([10.3, 11.1, 12.7])
    ratio, low, high = paired.ratio_interval(share * dense, dense)
    assert ratio == pytest.approx(share) and np.isnan(low) and np.isnan(high)


def test_a_ratio_over_a_constant_has_the_t_interval_divided_by_it():
    # mean -2, deviation 1: -2 +- 4.302653 / sqrt(3) = -2 +- 2.484138
    found = paired.ratio_interval([-1.0, -2.0, -3.0], [10.0, 10.0, 10.0])
    assert found == pytest.approx((-0.2, -0.4484138, 0.0484138), abs=1e-6)


def test_the_ends_of_a_ratio_interval_are_where_the_paired_t_test_turns():
    y, x = np.array([-30.0, 15.0, -60.0]), np.array([650.0, 700.0, 720.0])
    ratio, *ends = paired.ratio_interval(y, x)
    assert ratio == pytest.approx(-75 / 2070)
    for end in ends:
        left = y - end * x
        assert abs(left.mean()) / (left.std(ddof=1) / np.sqrt(3)) == pytest.approx(T2, rel=1e-5)


@pytest.mark.parametrize("dense", [[1.0, -1.0, 3.0], [-20.0, -19.0, -21.0]])
def test_a_share_of_a_dense_mean_that_may_be_0_or_is_below_it_has_no_interval(dense):
    _, low, high = paired.ratio_interval([1.0, 2.0, 3.0], dense)
    assert np.isnan(low) and np.isnan(high)


def test_each_of_several_simultaneous_intervals_has_the_level_of_its_share_of_the_errors():
    # 5 intervals at 99 % miss at least one truth in at most 5 * 1 %; t(2) at 0.5 % is 9.924843
    assert paired.simultaneous(5) == pytest.approx(0.99) and paired.simultaneous(1) == paired.simultaneous(0) == 0.95
    assert paired.t_interval([1.0, 2.0, 3.0], paired.simultaneous(5))[2] == pytest.approx(2 + 9.924843 / np.sqrt(3))


def test_the_deviation_of_a_run_is_what_an_effect_of_its_arm_and_one_of_its_seed_leave():
    # rows 1 2 6, 3 2 4: means of arms 3 3, of seeds 2 2 5, of all 3: left 0 1 ... = value - arm - seed + all
    #   1-3-2+3 = -1, 2-3-2+3 = 0, 6-3-5+3 = 1, and 1 0 -1: squares 4, 2 degrees of freedom
    arms, seeds = ["a"] * 3 + ["b"] * 3, [1, 2, 3] * 2
    ((source, (deviation, low, high, df)),) = paired.run_deviation([1.0, 2.0, 6.0, 3.0, 2.0, 4.0], arms, seeds).items()
    assert (source, deviation, df) == ("arms by seeds", pytest.approx(np.sqrt(2)), 2)
    # chi2(2) has -2 ln p: at 97.5 % 7.377759, at 2.5 % 0.050636
    assert (low, high) == (pytest.approx(np.sqrt(4 / 7.377759)), pytest.approx(np.sqrt(4 / 0.050636), rel=1e-5))
    # the same twice: means and their deviation are as before, and each counts for two runs
    twice = paired.run_deviation([1.0, 2.0, 6.0, 3.0, 2.0, 4.0] * 2, arms * 2, seeds * 2)
    assert twice.keys() == {"arms by seeds"} and twice["arms by seeds"][0] == pytest.approx(np.sqrt(2 * 2))


def test_equal_continuations_tell_the_deviation_too_and_alone_where_there_are_no_several_arms_in_several_seeds():
    # 1 3 around 2, 10 16 around 13, and one run of another arm: 1 + 1 + 9 + 9, 2 degrees of freedom
    (found,) = paired.run_deviation([1.0, 3.0, 10.0, 16.0, 7.0], ["a"] * 4 + ["b"], [1, 1, 2, 2, 1]).items()
    assert (found[0], found[1][0], found[1][3]) == ("equal continuations", pytest.approx(np.sqrt(10)), 2)
    both = paired.run_deviation([1.0, 3.0, 10.0, 16.0, 7.0, 9.0], ["a"] * 4 + ["b"] * 2, [1, 1, 2, 2, 1, 2])
    assert both.keys() == {"arms by seeds", "equal continuations"} and both["arms by seeds"][3] == 1
    assert paired.run_deviation([1.0, 2.0], ["a", "b"], [1, 1]) == {}


def test_the_power_of_the_declared_test_is_that_of_a_one_sided_test_and_grows_with_seeds():
    # many seeds: the margin is 0.1 * sqrt(400) = 2 standard errors away, the test needs 1.96; a normal exceeds -0.04
    assert paired.power(400, 1.0, loss=0.0) == pytest.approx(0.5160, abs=0.003)
    assert paired.power(5, 0.05) > paired.power(5, 0.05, loss=0.05) > paired.power(5, 0.05, loss=0.1) == pytest.approx(0.025)
    assert paired.power(3, 0.02) > 0.95 and paired.power(3, 0.1) < 0.2


def test_the_seeds_needed_are_the_first_with_80_percent_power_and_never_fewer_than_an_answer_takes():
    n = paired.seeds_needed(0.1)
    assert paired.power(n, 0.1) >= 0.8 > paired.power(n - 1, 0.1)
    assert paired.seeds_needed(0.0) == 3 and paired.seeds_needed(5.0) == np.inf


def test_the_slope_of_a_straight_line_is_found_for_each_seed():
    scores = [[10.0, 7.0], [8.0, 7.0], [4.0, 7.0]]  # 10 - 20 * rate, and a flat one
    assert paired.slopes(scores, [0.0, 0.1, 0.3]) == pytest.approx([-20, 0])


def test_over_games_each_seed_has_its_interquartile_mean_and_the_seeds_are_the_sample():
    # seed 1: 1 | 2 3 | 1000; seed 2: 4 | 5 6 | 7: 2.5 and 5.5; mean 4, deviation 3 / sqrt(2), t(1) 12.706205
    middle, low, high = paired.over_games([[1.0, 5.0], [2.0, 4.0], [1000.0, 6.0], [3.0, 7.0]])
    assert middle == 4 and high - middle == middle - low == pytest.approx(12.706205 * 1.5)


# --------------------------------------------------------------------------------------------------------------- one run
def test_a_bin_has_the_games_that_ended_in_it_its_end_included():
    # from 100 to 200 in 2 bins: up to 150 and up to 200; what ended at 100 is before, at 201 after
    found = paired.binned([100, 101, 150, 151, 200, 201], [9.0, 1.0, 2.0, 3.0, 5.0, 9.0], 100, 200, 2)
    assert found.tolist() == [1.5, 4.0]
    assert np.isnan(paired.binned([160], [1.0], 100, 200, 2)).tolist() == [True, False]
    assert np.isnan(paired.binned([], [], 100, 100, 2)).all()


# --------------------------------------------------------------------------------------------------------------- recovery
STEPS, CUT = np.arange(10, 100, 10), 40


def test_recovery_is_the_first_window_after_the_cut_at_the_level_before_it():
    # level (10 + 10) / 2; windows of two after the cut: 5, 7.5, 10: back with the game that ends at 80, 40 steps after the cut
    # area: means 4 5 7.5 10, 10 steps each: (6 + 5 + 2.5 + 0) * 10 = 135
    found = paired.recovery(STEPS, [5, 5, 10, 10, 4, 6, 9, 11, 20], CUT, window=2)
    assert found == {"level": 10, "back": 40, "area": 135}


def test_the_area_counts_each_mean_for_as_long_as_it_lasted():
    # level 10; means 4 7 10 for 10, 50 and 10 steps: 6 * 10 + 3 * 50 + 0 * 10
    found = paired.recovery([20, 40, 50, 100, 110], [10, 10, 4, 10, 10], CUT, window=2)
    assert (found["level"], found["back"], found["area"]) == (10, 70, 210)


def test_a_run_that_never_comes_back_is_not_given_a_time_and_loses_until_its_last_game():
    # (10 - 8) * (90 - 40)
    found = paired.recovery(STEPS, [5, 5, 10, 10, 8, 8, 8, 8, 8], CUT, window=2)
    assert found == {"level": 10, "back": np.inf, "area": 100}


def test_recovery_is_unknown_with_fewer_games_than_a_window_before_the_cut_and_never_with_fewer_after_it():
    assert np.isnan([*paired.recovery(STEPS, np.ones(9), 10, window=2).values()]).all()
    found = paired.recovery(STEPS, np.ones(9), 85, window=2)
    assert (found["level"], found["back"]) == (1, np.inf) and np.isnan(found["area"])


# --------------------------------------------------------------------------------------------------------------- coverage
@pytest.mark.parametrize("forks", [0, 3])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("algorithm", OWN)
def test_intervals_cover_the_truth_and_false_statements_are_as_rare_as_promised(algorithm, seeds, forks):
    found = coverage(algorithm, "return after the cut", seeds, forks, studies=4000)
    for interval in ("mean", "difference", "change", "simultaneous", "deviation", "equals", "games_0", "games_50"):
        assert 0.93 < found[interval] < 0.97, interval  # standard error 0.0034
    assert found["ever_yes"] == found["false_yes"] if seeds == 3 else found["ever_yes"] > 1.4 * found["false_yes"]  # looks
    assert found["false_yes"] < 0.035 and found["false_no"] < 0.035 and found["false_alarm"] < 0.06


@pytest.mark.parametrize("quantity", ["late return", "final network", "shock", "one tenth"])
@pytest.mark.parametrize("algorithm", OWN)
def test_intervals_of_noisier_quantities_cover_the_truth_too(algorithm, quantity):
    found = coverage(algorithm, quantity, 3, 0, studies=4000)
    assert all(0.93 < found[interval] < 0.97 for interval in ("mean", "difference", "change"))
    assert 0.93 < one_network(algorithm, 10, studies=4000)["one_network"] < 0.97


@pytest.mark.parametrize("words", ["--seeds", "--forks", "--seeds 1", "--interaction nan", "--studies 0"])
def test_a_simulation_of_no_studies_is_one_line_and_exit_2(words, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(tyro.cli(Args, args=words.split()))
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {words.split()[0]} must be at least ") and err.count("\n") == 1


def test_the_power_of_simulated_studies_is_what_the_report_says():
    # arm - 0.9 dense, of one run and of two: 7.5 % * sqrt(1 + 0.81 / 2)
    stated = paired.power(5, OWN["ppo"]["return after the cut"] * np.sqrt(1 + 0.81 / 2))
    assert power("ppo", 5, 0, studies=4000)["loss of 0 %"] == pytest.approx(stated, abs=0.03)
