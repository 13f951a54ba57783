"""Do the intervals and tests of the report keep their promises? Thousands of simulated studies go through analysis.paired.

    python -m checks.simulate_studies                    # 10,000 studies of each design, half a minute

A run's return is the mean of its arm, plus a deviation of its seed, plus one of its own. Both deviations are shares of the
mean.

                                    DQN     PPO     from
    of a seed, all its runs        3.1 %   3.1 %    a third of the variance between five seeds of Dopamine's DQN
    own, return after the cut      4.4 %   7.5 %    the other two thirds; four A/A pairs
    own, late return                 5 %    13 %
    own, one tenth                   4 %     9 %    one A/A pair; four
    own, final network and shock    20 %    13 %    a gamma distribution, with 10 games of each network on top

Games follow a gamma distribution too, with a deviation of 270 points (DQN) or 145 (PPO). The shock is of one network of each
seed, before the cut and after it. Each dense run has an A/A twin, or three forks like every arm (forks 3).

First table: shares of the studies whose 95 % interval covers the truth, and shares of false statements.

    mean, difference, change   an arm's mean, and its paired difference in points and in per cent of dense. The loss is 10 %; of
                               the shock and of a tenth (the first one after the cut) it is 50 %
    simultaneous               all exploratory arms and trends of a study at once
    deviation, equals          how far the difference in the declared test deviates between seeds: from arms by seeds, and from
                               equal continuations. The seeds needed are computed from the ends of these intervals
    games_0, games_50          the mean over seeds of the interquartile mean over four games, whose correlation within a seed is
                               0 or 50 %
    one_network                the mean return of one network over 10 games, and of no skill over 100 (a table of its own)
    false_yes, false_no        the declared answer is yes, or no, where exactly the margin is lost (2.5 % allowed each)
    ever_yes                   the same, read after each seed from the third on: the answer is yes at least once
    false_alarm                any exploratory comparison shows a loss or gain where there is none (5 % allowed)
    withheld                   changes without an interval, because dense is not surely above 0

Second table: the share of studies whose declared answer is yes, where nothing and where 5 % is lost.
"""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tyro

from analysis import paired
from analysis.design import MARGIN, MIN_SEEDS

MEAN = {"dqn": 660.0, "ppo": 430.0}
GAME = {"dqn": 270.0, "ppo": 145.0}
RATES = {"dqn": [0.05, 0.1, 0.3, 0.5, 0.8], "ppo": [0.1, 0.3, 0.5]}
SHARED = 0.031
OWN = {
    "dqn": {"return after the cut": 0.044, "late return": 0.05, "final network": 0.20, "shock": 0.20, "one tenth": 0.04},
    "ppo": {"return after the cut": 0.075, "late return": 0.13, "final network": 0.13, "shock": 0.13, "one tenth": 0.09},
}
LOSS = {"shock": 0.5, "one tenth": 0.5}
"""what the arm of the first table loses; of the other quantities it is the margin"""


@dataclass
class Args:
    studies: int = 10_000
    """simulated studies of each design"""
    seeds: tuple[int, ...] = (3, 5, 10, 20)
    """seeds of a study"""
    forks: tuple[int, ...] = (0, 3)
    """forks of each arm; 0: one run of each arm, and a dense run and its A/A twin"""
    interaction: float = 0.0
    """deviation of what an arm does to a seed, the same in all its forks, as a share of the mean"""


def network_games(rng, algorithm: str, networks: np.ndarray, games: int) -> np.ndarray:
    """Mean return of the games of networks with these true means."""
    shape = (networks / GAME[algorithm]) ** 2  # of one game; the sum of n games has n times that
    return rng.gamma(games * shape, networks / (games * shape))


def around_one(rng, deviation: float, shape: tuple) -> np.ndarray:
    """Draws of a gamma distribution whose mean is 1."""
    return rng.gamma(1 / deviation**2, deviation**2, shape)


def runs(rng, algorithm: str, quantity: str, studies: int, seeds: int, forks: int, losses, interaction: float = 0.0) -> list:
    """For each arm the value of each run, (studies, seeds, runs). First comes dense or, for a shock, its network before it."""
    seed, own, arms = rng.normal(0, SHARED, (studies, seeds, 1)), OWN[algorithm][quantity], []
    if quantity == "shock":
        seed = (1 + seed) * around_one(rng, own, seed.shape) - 1
    for arm, loss in enumerate([0.0, *losses]):
        k = (forks or 1) + (arm == 0)  # the dense run goes on beside its forks
        mean = MEAN[algorithm] * (1 - loss) * (1 + seed + rng.normal(0, interaction, (studies, seeds, 1)))
        if quantity == "shock" and arm == 0:
            arms.append(network_games(rng, algorithm, mean, 10))
        elif quantity in ("final network", "shock"):
            arms.append(network_games(rng, algorithm, mean * around_one(rng, own, (studies, seeds, k)), 10))
        else:
            arms.append(mean * (1 + rng.normal(0, own, (studies, seeds, k))))
    return arms


def share(holds: np.ndarray) -> float:
    return float(np.mean(holds))


def covered(interval: tuple, truth) -> np.ndarray:
    """Whether each interval covers the truth. One that was withheld says nothing false."""
    _, low, high = interval
    return ((low <= truth) & (truth <= high)) | np.isnan(low)


def exploratory(arms: list, rates: list[float]) -> list[tuple]:
    """Scores and references of a study's exploratory comparisons: every arm but the declared one, and two trends."""
    dense, *others = (arm.mean(-1) for arm in arms)
    pairs = [(scores, dense) for k, scores in enumerate(others) if k != rates.index(0.5)]
    for criterion in (others[: len(rates)], others[len(rates) :]):
        pairs.append((dense + paired.slopes(np.stack([dense, *criterion], 1), np.array([0.0, *rates])) / 10, dense))
    return pairs


def coverage(
    algorithm: str, quantity: str, seeds: int, forks: int, studies: int, interaction: float = 0.0, seed: int = 0
) -> dict:
    """Shares of simulated studies: intervals that cover the truth, and false statements."""
    rng, rates, base = np.random.default_rng(seed), RATES[algorithm], MEAN[algorithm]
    design, spread = (rng, algorithm, quantity, studies, seeds, forks), {"interaction": interaction}
    row, loss = {"algorithm": algorithm, "quantity": quantity, "seeds": seeds, "forks": forks}, LOSS.get(quantity, MARGIN)

    dense, arm = (values.mean(-1) for values in runs(*design, [loss], **spread))
    change = paired.ratio_interval(arm - dense, dense)
    row["mean"] = share(covered(paired.t_interval(arm), base * (1 - loss)))
    row["difference"] = share(covered(paired.t_interval(arm - dense), -loss * base))
    row["withheld"] = share(np.isnan(change[1]))
    row["change"] = share(covered(change, -loss)[~np.isnan(change[1])])
    if quantity != "return after the cut":  # of which alone there are answers and simultaneous intervals
        return row
    row["false_yes"], row["false_no"] = share(change[1] > -MARGIN), share(change[2] < -MARGIN)
    so_far = [(arm[:, :n], dense[:, :n]) for n in range(min(MIN_SEEDS, seeds), seeds + 1)]
    looks = [paired.ratio_interval(scores - references, references)[1] > -MARGIN for scores, references in so_far]
    row["ever_yes"] = share(np.any(looks, axis=0))

    losses = [2 * MARGIN * rate for rate in rates] * 2  # 10 % is lost at a rate of 0.5
    arms = runs(*design, losses, **spread)
    truths = [-loss for k, loss in enumerate(losses) if k != rates.index(0.5)] + [-2 * MARGIN / 10] * 2
    pairs = exploratory(arms, rates)
    level = paired.simultaneous(len(pairs))
    intervals = [paired.ratio_interval(scores - references, references, level) for scores, references in pairs]
    row["simultaneous"] = share(np.all([covered(i, truth) for i, truth in zip(intervals, truths, strict=True)], axis=0))
    pairs = exploratory(runs(*design, [0.0] * len(losses), **spread), rates)
    intervals = [paired.ratio_interval(scores - references, references, level) for scores, references in pairs]
    row["false_alarm"] = 1 - share(np.all([covered(interval, 0) for interval in intervals], axis=0))

    values = [arm / arm.mean((1, 2), keepdims=True) for arm in arms]
    names = [(arm, s) for arm, of_arm in enumerate(arms) for s in range(seeds) for _ in range(of_arm.shape[-1])]
    deviations = paired.run_deviation(np.concatenate([v.reshape(studies, -1) for v in values], 1), *zip(*names, strict=True))
    own, k = OWN[algorithm][quantity], forks or 1  # runs of an arm; one more of dense
    of_runs, of_arms = 1 / k + (1 - MARGIN) ** 2 / (k + 1), 1 + (1 - MARGIN) ** 2  # of arm - (1 - MARGIN) * dense
    truth = np.sqrt(of_runs * own**2 + of_arms * interaction**2)
    for column, source in (("deviation", "arms by seeds"), ("equals", "equal continuations")):
        _, low, high, _ = deviations[source]
        row[column] = share((np.sqrt(of_runs) * low <= truth) & (truth <= np.sqrt(of_runs) * high))
    for correlation in (0.0, 0.5):
        shared, own = (rng.normal(0, OWN[algorithm][quantity], (studies, games, seeds)) for games in (1, 4))
        changes = -MARGIN + np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        row[f"games_{100 * correlation:g}"] = share(covered(paired.over_games(changes), -MARGIN))
    return row


def power(algorithm: str, seeds: int, forks: int, studies: int, interaction: float = 0.0, seed: int = 0) -> dict:
    """How often the declared answer is yes."""
    row = {"algorithm": algorithm, "seeds": seeds, "forks": forks}
    for loss in (0.0, 0.05):
        design = (np.random.default_rng(seed), algorithm, "return after the cut", studies, seeds, forks)
        dense, half = (arm.mean(-1) for arm in runs(*design, [loss], interaction))
        row[f"loss of {100 * loss:g} %"] = share(paired.ratio_interval(half - dense, dense)[1] > -MARGIN)
    return row


def one_network(algorithm: str, games: int, studies: int, seed: int = 0) -> dict:
    """The interval over the games of one network, as evaluations and no-skill baselines have it."""
    networks = np.full((studies, games), MEAN[algorithm])
    returns = network_games(np.random.default_rng(seed), algorithm, networks, 1)
    return {"algorithm": algorithm, "games": games, "one_network": share(covered(paired.t_interval(returns), MEAN[algorithm]))}


def show(title: str, rows: list[dict]) -> None:
    print(f"{title}\n{pd.DataFrame(rows).to_string(index=False, float_format='{:.3f}'.format, na_rep='-')}\n", flush=True)


def main(args: Args) -> None:
    for option, least in {"studies": 1, "seeds": 2, "forks": 0, "interaction": 0}.items():
        values = np.ravel(getattr(args, option))
        if not len(values) or not np.isfinite(values).all() or values.min() < least:
            print(f"error: --{option} must be at least {least}, got {getattr(args, option)}", file=sys.stderr)
            sys.exit(2)
    spread = {"studies": args.studies, "interaction": args.interaction}
    designs = [(algorithm, n, forks) for algorithm in MEAN for forks in args.forks for n in args.seeds]
    rows = [coverage(a, quantity, n, forks, **spread) for a, n, forks in designs for quantity in OWN[a]]
    show("coverage of the 95 % intervals, and false statements", rows)
    show("coverage over games of one network", [one_network(a, games, args.studies) for a in MEAN for games in (10, 100)])
    show("power of the declared test: share of answers that are yes", [power(*design, **spread) for design in designs])


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.simulate_studies", description=__doc__))
