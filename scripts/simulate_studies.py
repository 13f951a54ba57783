"""Do the intervals and tests of scripts/report.py keep their promises? Thousands of made-up studies through its own functions.

    python scripts/simulate_studies.py                    # 20,000 studies of each design, under a minute

The noise is that of SpaceInvaders at 2M agent steps. All arms of a seed share a deviation of 3.1 % of the return. Each arm has
one of its own: DQN's run 4.4 % (both from five seeds of Dopamine's DQN, which range from 637 to 724, a third of their variance
taken to be shared), and its last network deviates by 20 % from its run; PPO's last network 13 %. The last two are measured here
(results/LOG.md), PPO's in three A/A pairs alone. A game deviates by 270 (DQN, the same measurement) and 145 (PPO, the
literature). Networks and games follow a gamma distribution: positive, with a longer tail above.

Columns: shares of the 95 % intervals given that cover the truth (of an arm's mean, of the paired difference in points and in
per cent, of the slope over rates, of the interquartile mean: 4 titles below 10 seeds); false alarms: that a loss of exactly the
margin is called excluded (2.5 % allowed), that any arm differs where none does, with Holm's correction (5 % allowed) and
without; how often a study finds the difference that another of its kind stated to be the smallest that it would see (80 %
promised), and the median of what is stated, as a share of the dense mean.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scripts import paired
from scripts.paired import MARGIN

MEAN = {"dqn": 680.0, "ppo": 550.0}
GAME = {"dqn": 270.0, "ppo": 145.0}
RATES = {"dqn": [0.05, 0.1, 0.3, 0.5, 0.8], "ppo": [0.1, 0.3, 0.5]}
SHARED, OWN, LAST_NETWORK = 0.031, {"dqn": 0.044, "ppo": 0.13}, {"dqn": 0.20, "ppo": 0.0}


@dataclass
class Args:
    studies: int = 20_000
    """made-up studies of each design"""
    bootstraps: int = 1000
    """of them, how many have the bootstrap interval of their interquartile mean computed, which is slow"""
    seeds: tuple[int, ...] = (3, 5, 10)
    """seeds of a study"""
    games: tuple[int, ...] = (10, 100)
    """evaluation games of a run"""


def scores(rng, algorithm: str, studies: int, seeds: int, games: int, true_means: np.ndarray) -> np.ndarray:
    """Mean return of the games of each run: (studies, arms, seeds) for arms whose networks have these true means."""
    shared = rng.normal(0, SHARED * MEAN[algorithm], (studies, 1, seeds))
    own = rng.normal(0, OWN[algorithm] * MEAN[algorithm], (studies, len(true_means), seeds))
    run, last = true_means[:, None] + shared + own, LAST_NETWORK[algorithm]
    network = run * rng.gamma(1 / last**2, last**2, run.shape) if last else run
    shape = (network / GAME[algorithm]) ** 2  # of one game; the sum of n games has n times that
    return rng.gamma(games * shape, network / (games * shape))


def covered(interval: tuple, truth: float) -> float:
    _, low, high = interval
    given = ~np.isnan(low)  # Fieller's is withheld where the dense mean is not sure to be positive
    return float(((low <= truth) & (truth <= high))[given].mean())


def simulate(algorithm: str, seeds: int, games: int, studies: int, bootstraps: int = 0, seed: int = 0) -> dict:
    """Shares of made-up studies: intervals that cover the truth, false alarms, and differences that were found."""
    rng, base, rates = np.random.default_rng(seed), MEAN[algorithm], np.array([0.0, *RATES[algorithm]])
    design = (rng, algorithm, studies, seeds, games)
    sloping = scores(*design, base * (1 - 2 * MARGIN * rates))  # 10 % are lost at a rate of 0.5
    dense, half = sloping[:, 0], sloping[:, list(rates).index(0.5)]
    found = {"algorithm": algorithm, "seeds": seeds, "games": games}
    found["mean"] = covered(paired.t_interval(half), base * (1 - MARGIN))
    found["difference"] = covered(paired.t_interval(half - dense), -MARGIN * base)
    found["change"] = covered(paired.ratio_interval(half - dense, dense), -MARGIN)
    found["trend"] = covered(paired.t_interval(paired.slopes(sloping, rates)), -2 * MARGIN * base)
    if bootstraps:  # four titles where there are too few seeds for one alone
        titles = [scores(rng, algorithm, bootstraps, seeds, games, base * (1 - 2 * MARGIN * rates)) for _ in range(4)]
        pairs = [(title[:, 0], title[:, list(rates).index(0.5)]) for title in titles[: 1 if seeds >= 10 else 4]]
        changes = [(half - dense) / dense.mean(-1, keepdims=True) for dense, half in pairs]
        found["iqm"] = covered(paired.iqm_interval(changes, 999), -MARGIN)
    found["false_not_worse"] = float((paired.p_not_worse(half, dense, MARGIN) < (1 - paired.LEVEL) / 2).mean())

    equal = scores(*design, np.full(1 + 2 * len(RATES[algorithm]), base))  # both criteria at every rate, and nothing lost
    p = paired.p_value(equal[:, 1:] - equal[:, :1])
    found["false_alarm_holm"] = float((paired.holm(p) < 0.05).any(-1).mean())
    found["false_alarm_uncorrected"] = float((p < 0.05).any(-1).mean())

    stated = paired.detectable(equal[:, 1] - equal[:, 0])
    again = scores(*design, np.full(2, base))  # the same design once more, with the loss that the first study stated
    found["power_at_stated"] = float((paired.p_value(again[:, 1] - again[:, 0] - stated[:, None]) < 0.05).mean())
    found["stated_median"] = float(np.median(stated) / base)
    return found


def main(args: Args) -> None:
    for option, least in {"studies": 1, "bootstraps": 0, "seeds": 2, "games": 1}.items():
        if np.min(getattr(args, option)) < least:
            print(f"error: --{option} must be at least {least}, got {getattr(args, option)}", file=sys.stderr)
            sys.exit(2)
    designs = [(algorithm, n, games) for algorithm in MEAN for n in args.seeds for games in args.games]
    table = pd.DataFrame([simulate(*design, args.studies, args.bootstraps) for design in designs])
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
