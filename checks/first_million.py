"""How do our dense PPO and CleanRL's compare? Mean training return in each quarter of the first 1M steps.

    python -m checks.first_million
    python -m checks.first_million --add "this script, fp32" --runs RUN...      # adds dense runs to its table first

The other games come from results/study, results/study_h200 and results/cleanrl.csv.gz. A cell has the mean over seeds and their
number. The last rows are differences of means, with Welch's 95 % interval.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from analysis.design import CLEANRL
from analysis.paired import binned, welch_interval
from checks import cleanrl_returns
from prune_utils.basics import check, exit_codes, write_atomically
from prune_utils.run import read_config

TABLE = CLEANRL.with_name("first_million.csv.gz")
ENDS = np.array([250_000, 500_000, 750_000, 1_000_000])
CLEANRLS, BF16, FP32 = "CleanRL, fp32", "this script, bf16", "this script, fp32"
STUDIES = {"study/*ppo_atari_prune__none__s1_*": FP32, "study/*ppo_atari_prune__none__s[2-6]_*": BF16}
STUDIES |= {"study_h200/*ppo_atari_prune__none__s1_*": "this script, H200, TF32 in convolutions"}


@dataclass
class Args:
    add: str = ""
    """what the runs of --runs are, in words"""
    runs: tuple[Path, ...] = ()
    """run folders, finished or not; CleanRL's too"""


def games(folder: Path, program: str) -> pd.DataFrame:
    """The training games of a run, up to the last quarter's end."""
    config, files = read_config(folder), [*folder.glob("curves.csv*")]
    if not config and [*folder.glob("events.out.tfevents.*")]:
        run = cleanrl_returns.read(folder, finished=False).query("algorithm == 'ppo'")
        return run[run.global_step <= ENDS[-1]].assign(program=program).drop(columns="algorithm")
    check(bool(config and files), "runs", "be run folders", folder)
    curves = pd.read_csv(files[0]).rename(columns={"value": "episodic_return"})
    rows = curves[(curves.tag == "charts/episodic_return") & (curves.global_step <= ENDS[-1])]
    return rows.assign(program=program, seed=config["options"]["seed"]).drop(columns="tag")


def quarters(run: pd.DataFrame) -> list[float]:
    """Mean return in each quarter; nan where the run did not reach the quarter's end."""
    means = binned(run.global_step, run.episodic_return, 0, ENDS[-1], len(ENDS))
    return list(np.where(run.global_step.max() > ENDS - 5000, means, np.nan))  # 8 games end more often than each 5,000 steps


def main(args: Args) -> None:
    check(bool(args.add) == bool(args.runs), "add", "go with --runs", args.add)
    table = pd.read_csv(TABLE)
    if args.add:
        new = pd.concat([games(folder, args.add) for folder in args.runs]).astype({"episodic_return": int})
        replaced = (table.program == args.add) & table.seed.isin(new.seed)
        table = pd.concat([table[~replaced], new[table.columns]])
        write_atomically(TABLE, gzip.compress(table.to_csv(index=False).encode(), mtime=0))
    sources = [pd.read_csv(CLEANRL).query("algorithm == 'ppo'").assign(program=CLEANRLS), table]
    for pattern, program in STUDIES.items():
        sources += [games(folder, program) for folder in CLEANRL.parent.glob(pattern)]
    runs = {key: quarters(run) for key, run in pd.concat(sources).groupby(["program", "seed"])}
    means = pd.DataFrame(runs).T

    print("| | seeds | 1st | 2nd | 3rd | 4th |\n|---|---|---|---|---|---|")
    for program, rows in means.groupby(level=0):
        cells = [f"{rows[k].mean():.0f} ({rows[k].count()})" if rows[k].count() else "–" for k in means]
        print(f"| {program} | {', '.join(str(seed) for _, seed in rows.index)} | {' | '.join(cells)} |")
    for program, other in ((BF16, CLEANRLS), (FP32, CLEANRLS), (BF16, FP32)):
        columns = [(means.loc[program][k].dropna().to_numpy(), means.loc[other][k].dropna().to_numpy()) for k in means]
        ends = [np.round(welch_interval(*column)) + 0.0 for column in columns]  # no -0
        cells = ["{:.0f} ({:.0f} to {:.0f})".format(*of_column).replace("-", "−") for of_column in ends]
        print(f"| {program}, less {other} | | {' | '.join(cells)} |")
    print(f"\nEach seed:\n{means.round(0).to_string(header=['1st', '2nd', '3rd', '4th'])}")


if __name__ == "__main__":
    with exit_codes():
        main(tyro.cli(Args, prog="python -m checks.first_million", description=__doc__))
