"""Take the training returns of CleanRL's own runs out of their TensorBoard files, to set them beside our dense runs.

    python -m checks.cleanrl_returns DIR/runs/SpaceInvadersNoFrameskip-v4__*

The runs are of CleanRL's dqn_atari.py and ppo_atari.py, with the options of the declared study. They replace the runs of their
algorithm and seed in the table, which the report reads.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis.design import CLEANRL, DESIGN
from prune_utils.basics import UserError, check, check_file, exit_codes, write_atomically

OPTIONS, RETURNS = "hyperparameters/text_summary", "charts/episodic_return"
FREE = {"ppo": {"exp_name"}, "dqn": {"exp_name", "num_envs"}}
"""options in which runs differ from the declared study: CleanRL's DQN plays one game"""


@dataclass
class Args:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")]
    """folders of finished runs"""
    out: Path = CLEANRL
    """the table: algorithm, seed, global_step, episodic_return; a gzipped CSV file"""


def read(folder: Path, finished: bool = True) -> pd.DataFrame:
    """The training games of one run. Raises UserError if it is not of the declared study or, if it has to be, not finished."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    tags = events.Reload().Tags() if folder.is_dir() else {"scalars": [], "tensors": []}
    if RETURNS not in tags["scalars"] or OPTIONS not in tags["tensors"]:
        raise UserError(f"RUN must be the folder of a run of CleanRL, got {folder}")
    text = events.Tensors(OPTIONS)[0].tensor_proto.string_val[0].decode()
    options = dict(line[1:-1].split("|", 1) for line in text.splitlines())  # lines of |name|value|
    algorithm = options["exp_name"].removesuffix("_atari")
    if algorithm not in DESIGN:
        raise UserError(f"RUN must be of dqn_atari.py or ppo_atari.py, got {options['exp_name']}: {folder}")
    shared = options.keys() & DESIGN[algorithm].keys() - FREE[algorithm]
    for name in sorted(shared):
        asked, given = (value.removesuffix(".0") for value in (str(DESIGN[algorithm][name]), options[name]))
        if given != asked:
            raise UserError(f"RUN must have the study's {name}, {asked}, got {given}: {folder}")
    games, last = events.Scalars(RETURNS), max(events.Scalars(tag)[-1].step for tag in tags["scalars"])
    if finished and last < 0.999 * int(options["total_timesteps"]):
        raise UserError(f"RUN must be finished, got {folder} at step {last:,}")
    print(f"{algorithm}, seed {options['seed']}: {len(games):,} games")
    rows = {"algorithm": algorithm, "seed": int(options["seed"]), "global_step": [game.step for game in games]}
    return pd.DataFrame(rows | {"episodic_return": [int(game.value) for game in games]})


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m checks.cleanrl_returns", description=__doc__)
        check("".join(args.out.suffixes[-2:]) == ".csv.gz", "out", "end in .csv.gz", args.out)
        check_file("out", args.out)
        if not args.runs:
            raise UserError("RUN must be at least one run folder, got none")
        tables = [pd.read_csv(args.out)] if args.out.exists() else []
        check(all({"algorithm", "seed"} <= set(table) for table in tables), "out", "be a table of this program", args.out)
        tables += [read(folder) for folder in args.runs]
        latest = {key: games for table in tables for key, games in table.groupby(["algorithm", "seed"])}
        text = pd.concat([latest[key] for key in sorted(latest)]).to_csv(index=False, lineterminator="\n")
        write_atomically(args.out, gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
