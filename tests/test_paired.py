"""The statistics of the report: by hand, and over made-up studies whose truth is known."""

import numpy as np
import pytest

from scripts import paired
from scripts.simulate_studies import simulate

T2 = 4.302653  # 97.5 % point of the t distribution with 2 degrees of freedom


def test_a_t_interval_is_that_of_the_seeds_by_hand_and_one_seed_has_none():
    # mean 2.5; squares 2.25 + .25 + .25 + 2.25 = 5, / 3, root 1.29099; t(3, 97.5 %) = 3.18245; 3.18245 * 1.29099 / 2 = 2.05426
    assert paired.t_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 2.5 - 2.05426, 2.5 + 2.05426), abs=1e-4)
    mean, low, high = paired.t_interval([7.0])
    assert mean == 7 and np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize("alike", [[0.0, 0.0, 0.0], [-20.4 + 20.3, -20.5 + 20.4, -21.0 + 20.9], [7.0]])
def test_samples_that_do_not_differ_have_no_interval_no_p_value_and_no_detectable_difference(alike):
    assert np.isnan([*paired.t_interval(alike)[1:], paired.p_value(alike), paired.detectable(alike)]).all()


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


def test_p_values_are_those_of_the_paired_t_test_by_hand():
    # t = 2 / (1 / sqrt(3)), t^2 = 12; with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14)
    assert paired.p_value([1.0, 2.0, 3.0]) == pytest.approx(1 - np.sqrt(12 / 14))
    assert np.isnan(paired.p_value([5.0]))
    # against 9: -1, 1, 3; t = 1 / (2 / sqrt(3)), t^2 = .75; one-sided (1 - sqrt(.75 / 2.75)) / 2
    assert paired.p_not_worse([8.0, 10.0, 12.0], [10.0] * 3, margin=0.1) == pytest.approx((1 - np.sqrt(0.75 / 2.75)) / 2)


def test_holm_multiplies_the_smallest_p_by_all_tests_the_next_by_one_less_and_never_falls():
    # .01 * 3, .03 * 2, max(.04 * 1, .06)
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert paired.holm([0.5, 0.9]).tolist() == [1, 1]
    assert paired.holm([[0.01, 0.2], [0.03, 0.02]]).ravel() == pytest.approx([0.02, 0.2, 0.04, 0.04])


def test_the_smallest_difference_nears_that_of_a_known_deviation_with_many_seeds_and_is_larger_with_few():
    # known deviation: (1.95996 + 0.84162) / sqrt(n)
    assert paired.detectable_deviations(1000) == pytest.approx(2.80158 / np.sqrt(1000), rel=0.005)
    assert paired.detectable_deviations(3) > 3 * 2.80158 / np.sqrt(3)
    # deviation of 1, 2, 3 is 1
    assert paired.detectable([1.0, 2.0, 3.0]) == pytest.approx(paired.detectable_deviations(3))
    assert np.isnan(paired.detectable([1.0]))


def test_the_slope_of_a_straight_line_is_found_for_each_seed():
    scores = [[10.0, 7.0], [8.0, 7.0], [4.0, 7.0]]  # 10 - 20 * rate, and a flat one
    assert paired.slopes(scores, [0.0, 0.1, 0.3]) == pytest.approx([-20, 0])


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end_over_all_games():
    # 1 2 | 3 4 5 6 | 7 1000
    middle, low, high = paired.iqm_interval([[1.0, 1000.0, 3.0, 5.0], [2.0, 7.0, 4.0, 6.0]])
    assert middle == 4.5 and low < 4.5 < high
    assert paired.iqm_interval([[1.0, 1000.0, 3.0, 5.0], [2.0, 7.0, 4.0, 6.0]]) == (middle, low, high)


# --------------------------------------------------------------------------------------------------------------- recovery
STEPS, CUT = np.arange(10, 100, 10), 40


def test_recovery_is_the_first_window_after_the_cut_at_the_level_before_it():
    # level (10 + 10) / 2; windows of two after the cut: 5, 7.5, 10: back with the game that ends at 80, 40 steps after the cut
    # area: means 4 5 7.5 10, 10 steps each: (6 + 5 + 2.5 + 0) * 10 = 135; all games after: (4 + 6 + 9 + 11 + 20) / 5 = 10
    found = paired.recovery(STEPS, [5, 5, 10, 10, 4, 6, 9, 11, 20], CUT, window=2)
    assert found == {"level": 10, "back": 40, "area": 135, "after": 10}


def test_the_area_counts_each_mean_for_as_long_as_it_lasted():
    # level 10; means 4 7 10 for 10, 50 and 10 steps: 6 * 10 + 3 * 50 + 0 * 10
    found = paired.recovery([20, 40, 50, 100, 110], [10, 10, 4, 10, 10], CUT, window=2)
    assert (found["level"], found["back"], found["area"]) == (10, 70, 210)


def test_a_run_that_never_comes_back_is_not_given_a_time_and_loses_until_its_last_game():
    # (10 - 8) * (90 - 40)
    found = paired.recovery(STEPS, [5, 5, 10, 10, 8, 8, 8, 8, 8], CUT, window=2)
    assert found == {"level": 10, "back": np.inf, "area": 100, "after": 8}


@pytest.mark.parametrize("cut", [10, 85])
def test_recovery_is_unknown_with_fewer_games_than_a_window_before_or_after_the_cut(cut):
    found = paired.recovery(STEPS, np.ones(9), cut, window=2)
    assert np.isnan([found["level"], found["back"], found["area"]]).all() and found["after"] == 1


# --------------------------------------------------------------------------------------------------------------- coverage
@pytest.mark.parametrize("games", [10, 100])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("algorithm", ["dqn", "ppo"])
def test_intervals_cover_the_truth_tests_keep_their_error_rate_and_the_smallest_difference_its_power(algorithm, seeds, games):
    found = simulate(algorithm, seeds, games, studies=4000)
    for interval in ("mean", "difference", "change", "trend"):
        assert 0.93 < found[interval] < 0.97  # standard error 0.0034
    assert found["false_alarm_holm"] < 0.06 < found["false_alarm_uncorrected"]
    assert found["false_not_worse"] < 0.035
    assert 0.77 < found["power_at_stated"] < 0.83  # standard error 0.0063


def test_the_bootstrap_interval_covers_the_truth_from_ten_seeds_on():
    assert 0.93 < simulate("dqn", 10, 100, studies=10, bootstraps=1000)["iqm"] < 0.97  # standard error 0.007
