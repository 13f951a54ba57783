"""The statistics of a study as pure functions. Seeds are the sample, and the arms of a seed are pairs.

Arrays have the seeds on their last axis, so that thousands of simulated studies go through the same lines as one real study
(checks/simulate_studies.py). A number is nan where the sample is too small for it. An interval is nan also where all seeds have
the same score, since its width would be 0.
"""

import numpy as np
import pandas as pd
from scipy import stats

from analysis.design import MARGIN, MIN_SEEDS

LEVEL = 0.95
POWER = 0.8


def simultaneous(comparisons: int) -> float:
    """The level that each of several intervals needs so that all cover their truths in 95 % of studies or more (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def deviation(samples: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) over the last axis; nan where no two samples differ by more than rounding."""
    n = samples.shape[-1]
    return np.where(np.ptp(samples, axis=-1) > 1e-9, samples.std(-1) * np.sqrt(n / max(n - 1, 1)), np.nan)


def t_interval(samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis, and the two ends of its t interval."""
    samples = np.asarray(samples, float)
    n, mean = samples.shape[-1], samples.mean(-1)
    half = stats.t.ppf((1 + level) / 2, max(n - 1, 1)) * deviation(samples) / np.sqrt(n)
    return mean, mean - half, mean + half


def welch_interval(samples: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of the means of two unpaired samples (last axis), and the two ends of Welch's 95 % interval."""
    a, b = deviation(samples) ** 2 / samples.shape[-1], deviation(others) ** 2 / others.shape[-1]
    df = (a + b) ** 2 / (a**2 / max(samples.shape[-1] - 1, 1) + b**2 / max(others.shape[-1] - 1, 1))
    difference, half = samples.mean(-1) - others.mean(-1), stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(a + b)
    return difference, difference - half, difference + half


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio of the means of paired samples, and its interval by Fieller's theorem; nan where the denominator may be 0.

    The interval holds every r for which a t test on numerators - r * denominators finds nothing. So it is as exact as that
    test, and it allows for the error of the denominator.
    """
    y, x = np.asarray(numerators, float), np.asarray(denominators, float)
    n, y_mean, x_mean = y.shape[-1], y.mean(-1), x.mean(-1)
    ratio = np.divide(y_mean, x_mean, out=np.full_like(y_mean, np.nan), where=x_mean > 0)
    x_off, y_off = x - x_mean[..., None], y - y_mean[..., None]
    t2 = stats.t.ppf((1 + level) / 2, max(n - 1, 1)) ** 2 / (n * max(n - 1, 1))
    a = x_mean**2 - t2 * (x_off**2).sum(-1)
    b = x_mean * y_mean - t2 * (x_off * y_off).sum(-1)
    c = y_mean**2 - t2 * (y_off**2).sum(-1)
    bounded = (a > 0) & (x_mean > 0) & ~np.isnan(deviation(y - ratio[..., None] * x))
    a, root = np.where(bounded, a, np.nan), np.sqrt(np.maximum(b**2 - a * c, 0))
    return ratio, (b - root) / a, (b + root) / a


def slopes(scores: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Least-squares slope of scores (..., rates, seeds) over the prune rate, one per seed: (..., seeds), per unit of rate."""
    centred = np.asarray(rates, float) - np.mean(rates)
    return np.einsum("r,...rs->...s", centred, np.asarray(scores, float)) / (centred**2).sum()


def over_games(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean over the games of each seed, then the mean over seeds and its t interval.

    `changes` is (..., games, seeds). A seed has the same masks and initial weights in every game, so its games are one cluster,
    and n is the number of seeds.
    """
    return t_interval(stats.trim_mean(np.asarray(changes, float), 0.25, axis=-2))


# ------------------------------------------------------------------------------------------------------- noise and power
def run_deviation(values: np.ndarray, arms: list, seeds: list) -> dict[str, tuple]:
    """How far single runs deviate from what their arm and seed explain: standard deviation, 95 % interval, degrees of freedom.

    There are two estimates, each made where its data exist. `arms by seeds` describes the mean of each arm and seed as an
    effect of the arm plus one of the seed, and takes what is left. `equal continuations` takes the differences between forks
    (A/A too) of one arm and seed. It cannot show that a cut affects some seeds more than others. `values` is (..., runs).
    """
    values = np.asarray(values, float)
    cells = [f"{arm} {seed}" for arm, seed in zip(arms, seeds, strict=True)]
    arm, seed, cell = (np.array([[x == name for name in dict.fromkeys(of)] for x in of], float) for of in (arms, seeds, cells))

    def left(design: np.ndarray) -> tuple[np.ndarray, int]:
        """Sum of squares that a linear design leaves, and its degrees of freedom."""
        projection = design @ np.linalg.pinv(design)
        return ((values - values @ projection.T) ** 2).sum(-1), len(design) - int(np.linalg.matrix_rank(design))

    (of_all, df_all), (of_equals, df_equals) = left(np.hstack([arm, seed])), left(cell)
    sources = {"arms by seeds": (of_all - of_equals, df_all - df_equals), "equal continuations": (of_equals, df_equals)}
    known = {source: (squares, df) for source, (squares, df) in sources.items() if df and np.all(squares > 1e-18)}
    return {source: deviation_interval(squares, df) for source, (squares, df) in known.items()}


def deviation_interval(squares: np.ndarray, df: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Standard deviation from a sum of squares with df degrees of freedom, the ends of its 95 % interval, and df."""
    ends = (np.sqrt(squares / stats.chi2.ppf(p, df)) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return np.sqrt(squares / df), *ends, df


def power(seeds, deviation, loss: float = 0.0) -> np.ndarray:
    """Probability that the declared test excludes a loss of the margin where the true loss is `loss`.

    The test is a paired t test of arm - (1 - MARGIN) * dense, one-sided at 2.5 %. It is the same as asking whether the lower
    end of the 95 % interval lies above -MARGIN. `deviation` is the standard deviation of that difference between seeds. It and
    `loss` are shares of the dense mean.
    """
    n = np.asarray(seeds, float)
    shift = (MARGIN - loss) * np.sqrt(n) / deviation
    return stats.nct.sf(stats.t.ppf((1 + LEVEL) / 2, n - 1), n - 1, shift)


def seeds_needed(deviation: float) -> float:
    """The fewest seeds that give the declared test 80 % power where nothing is lost; inf above 1,000."""
    enough = power(np.arange(MIN_SEEDS, 1001), max(deviation, 1e-3)) >= POWER
    return float(MIN_SEEDS + np.argmax(enough)) if enough.any() else np.inf


# ------------------------------------------------------------------------------------------------------------ one run
def binned(steps: np.ndarray, returns: np.ndarray, start: int, end: int, bins: int) -> np.ndarray:
    """Mean return of the games that ended in each of `bins` equal parts of the steps in (start, end]; nan without games."""
    steps, returns = np.asarray(steps), np.asarray(returns, float)
    inside = (steps > start) & (steps <= end)
    index = np.searchsorted(np.linspace(start, end, bins + 1), steps[inside]) - 1  # a bin holds its end, not its start
    sums, games = np.bincount(index, returns[inside], bins), np.bincount(index, minlength=bins)
    return np.divide(sums, games, out=np.full(bins, np.nan), where=games > 0)


def recovery(steps: np.ndarray, returns: np.ndarray, cut: int, window: int) -> dict[str, float]:
    """How the training return falls at the cut and comes back; nan with fewer than `window` games before the cut.

    `returns` are of training games in the order of their ends, `steps` the agent steps at which they ended. `level` is the mean
    of the last `window` games before the cut. `back` counts agent steps from the cut until the mean of the last `window` games,
    all after the cut, reaches the level; it is inf if that never happens. `area`, return times agent steps, lies between the
    level and that moving mean (of fewer games at first), from the cut until `back` or the last game. It is nan with fewer than
    `window` games after the cut, where the run was too short, or its agent is stuck.
    """
    steps, returns = np.asarray(steps), np.asarray(returns, float)
    before, after, ends = returns[steps <= cut], returns[steps > cut], steps[steps > cut] - cut
    if len(before) < window:
        return {"level": np.nan, "back": np.nan, "area": np.nan}
    level = before[-window:].mean()
    if len(after) < window:
        return {"level": level, "back": np.inf, "area": np.nan}
    means = pd.Series(after).rolling(window, min_periods=1).mean().to_numpy()
    reached = np.flatnonzero(means[window - 1 :] >= level - 1e-9)
    games = reached[0] + window if len(reached) else len(after)
    back = ends[games - 1] if len(reached) else np.inf
    area = ((level - means) * np.diff(ends, prepend=0))[:games].sum()
    return {"level": level, "back": back, "area": area}
