"""The statistics of a study as pure functions: seeds are the sample, and the arms of a seed are pairs.

Arrays have the seeds on their last axis, so that thousands of simulated studies go through the same lines as one real study
(scripts/simulate_studies.py). What a sample is too small for is nan, and so is what it would be sure of only because its seeds
do not differ at all: scores that are all 0, say.
"""

import warnings
from functools import cache

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
MARGIN = 0.10
"""the share of the dense return that the declared contrast may lose and still be called not worse"""


def deviation(samples: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) over the last axis; nan where no two samples differ by more than rounding."""
    n = samples.shape[-1]
    return np.where(np.ptp(samples, axis=-1) > 1e-9, samples.std(-1) * np.sqrt(n / max(n - 1, 1)), np.nan)


def t_interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis, and the two ends of its 95 % t interval."""
    samples = np.asarray(samples, float)
    n, mean = samples.shape[-1], samples.mean(-1)
    half = stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1)) * deviation(samples) / np.sqrt(n)
    return mean, mean - half, mean + half


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio of the means of paired samples, and its 95 % interval by Fieller's theorem; nan where the denominator may be 0.

    The interval holds every r at which a t test on numerators - r * denominators finds nothing: it is as exact as that test,
    and knows that the denominator is measured too.
    """
    y, x = np.asarray(numerators, float), np.asarray(denominators, float)
    n, y_mean, x_mean = y.shape[-1], y.mean(-1), x.mean(-1)
    ratio = np.divide(y_mean, x_mean, out=np.full_like(y_mean, np.nan), where=x_mean > 0)
    x_off, y_off = x - x_mean[..., None], y - y_mean[..., None]
    t2 = stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1)) ** 2 / (n * max(n - 1, 1))
    a = x_mean**2 - t2 * (x_off**2).sum(-1)
    b = x_mean * y_mean - t2 * (x_off * y_off).sum(-1)
    c = y_mean**2 - t2 * (y_off**2).sum(-1)
    bounded = (a > 0) & (x_mean > 0) & ~np.isnan(deviation(y - ratio[..., None] * x))
    a, root = np.where(bounded, a, np.nan), np.sqrt(np.maximum(b**2 - a * c, 0))
    return ratio, (b - root) / a, (b + root) / a


def p_value(differences: np.ndarray, alternative: str = "two-sided") -> np.ndarray:
    """Of the paired t test that the mean difference is 0."""
    differences = np.asarray(differences, float)
    with warnings.catch_warnings(action="ignore"):  # that seeds which differ alike leave it little to go by
        p = stats.ttest_1samp(differences, 0, axis=-1, alternative=alternative).pvalue
    return np.where(np.isnan(deviation(differences)), np.nan, p)


def p_not_worse(arm: np.ndarray, dense: np.ndarray, margin: float) -> np.ndarray:
    """One-sided, that the arm loses the margin (a share of the dense mean) or more: small where such a loss is excluded."""
    return p_value(np.asarray(arm, float) - (1 - margin) * np.asarray(dense, float), "greater")


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's correction of the p-values on the last axis (Scandinavian Journal of Statistics 6, 1979); nan is no test."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, axis=-1)  # nan last
    tests = (~np.isnan(p)).sum(-1, keepdims=True)
    stepped = np.take_along_axis(p, order, -1) * (tests - np.arange(p.shape[-1]))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(stepped, axis=-1), 1), -1)
    return adjusted


@cache
def detectable_deviations(n: int) -> float:
    """How many estimated standard deviations a difference must have for a paired t test at 5 % to find it with 80 % power.

    The deviation is itself estimated from n seeds. Taken for the true one it would promise too much (with 3 seeds 63 % power
    for 80), so the factor is the one at which a new study of n seeds finds the stated difference in 80 % of all cases.
    """
    nodes, weights = np.polynomial.legendre.leggauss(100)  # shares of all studies, from 0 to 1
    nodes, weights = (nodes + 1) / 2, weights / 2
    deviations = np.sqrt(stats.chi2.ppf(nodes, n - 1) / (n - 1))  # estimated over true
    bars = stats.t.ppf((1 + LEVEL) / 2, n - 1) * deviations  # of the new study: its mean has to pass one of them

    def power(factor: float) -> float:
        shifts = factor * np.sqrt(n) * deviations[:, None]
        return float(weights @ (stats.norm.sf(bars - shifts) + stats.norm.cdf(-bars - shifts)) @ weights)

    return optimize.brentq(lambda factor: power(factor) - POWER, 0, 1000)


def detectable(differences: np.ndarray) -> np.ndarray:
    """The smallest mean difference that a study like this one finds with 80 % power."""
    differences = np.asarray(differences, float)
    n = differences.shape[-1]
    return deviation(differences) * (detectable_deviations(n) if n > 1 else np.nan)


def slopes(scores: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Least-squares slope of scores (..., rates, seeds) over the prune rate, a seed each: (..., seeds), per unit of rate."""
    centred = np.asarray(rates, float) - np.mean(rates)
    return np.einsum("r,...rs->...s", centred, np.asarray(scores, float)) / (centred**2).sum()


def iqm_interval(games: list[np.ndarray], n_resamples: int = 9999) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean over all seeds of all games (an array (..., seeds) each), and its 95 % bootstrap interval.

    Seeds are drawn within each game. A bootstrap of n seeds is too narrow by sqrt(n / (n - 1)) (Hesterberg 2015, The American
    Statistician 69, section 5.3), so its percentiles are moved out by that.
    """

    def iqm(*samples, axis):
        return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    games = [np.asarray(game, float) for game in games]
    seeds = min(game.shape[-1] for game in games)
    wider = 1 - 2 * stats.norm.sf(np.sqrt(seeds / (seeds - 1)) * stats.norm.ppf((1 + LEVEL) / 2))
    options = {"method": "percentile", "confidence_level": wider, "n_resamples": n_resamples, "vectorized": True}
    found = stats.bootstrap(games, iqm, axis=-1, rng=0, **options).confidence_interval
    return iqm(*games, axis=-1), found.low, found.high


def recovery(steps: np.ndarray, returns: np.ndarray, cut: int, window: int) -> dict[str, float]:
    """How the training return (games in the order of their ends, at agent steps) falls at the cut and comes back.

    level: mean of the last `window` games up to the cut. back: agent steps from the cut until the mean of the last `window`
    games, all ended after the cut, is at the level again; inf where that is not within the run. area: between the level and
    that moving mean (of fewer games at first), return times agent steps, from the cut until then or the end of the run's
    games. after: mean of all games ended after the cut.
    """
    steps, returns = np.asarray(steps), np.asarray(returns, float)
    before, after, ends = returns[steps <= cut], returns[steps > cut], steps[steps > cut] - cut
    found = {"level": np.nan, "back": np.nan, "area": np.nan, "after": after.mean() if len(after) else np.nan}
    if len(before) < window or len(after) < window:
        return found
    level = before[-window:].mean()
    sums = np.cumsum(after)
    means = (sums - np.concatenate([np.zeros(window), sums[:-window]])) / np.minimum(np.arange(1, len(after) + 1), window)
    reached = np.flatnonzero(means[window - 1 :] >= level - 1e-9)
    games = reached[0] + window if len(reached) else len(after)
    back = ends[games - 1] if len(reached) else np.inf
    area = ((level - means) * np.diff(ends, prepend=0))[:games].sum()
    return found | {"level": level, "back": back, "area": area}
