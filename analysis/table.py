"""Print one table of finished runs, a column for each: returns, zeros, bytes on disk, speed.

    python -m analysis.table RUN...

A run without a summary.json is named as unfinished. With no finished run the exit code is 2.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro

from analysis.runs import Broken, Named, read_results, read_run
from prune_utils.basics import UserError, exit_codes

MOMENTS = {"before_prune": "return before the cut", "after_prune": "return right after it", "final": "return at the end"}
FORMATS = {
    "dense": "bytes, dense",
    "coo": "bytes, COO",
    "csr_int64": "bytes, CSR int64",
    "csr_int32": "bytes, CSR int32",
    "packed": "bytes, packed",
}


@dataclass
class Args:
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")]
    """run folders"""


def score(moment: dict | None) -> str:
    """Mean return over the games and its 95 % interval, which one game alone does not have."""
    if moment is None:
        return "-"
    return f"{moment['mean']:.1f}" + (" [{:.1f}, {:.1f}]".format(*moment["ci95"]) if moment["ci95"] else "")


def size(summary: dict, name: str) -> str:
    """Bytes of a file, and how many times those of the weights before the cut, in fp32."""
    disk = summary["disk"]
    return f"{disk[name]:,} ({disk[name] / summary['total'] / 4:.2f}x)" if name in disk else "-"


def return_after_cut(folder: Path, notes: list[str]) -> str:
    """Mean training return after the cut; `-` where a tenth of those steps has no games, or where a note says why."""
    run = read_run(folder)
    try:
        if isinstance(run, Named):
            raise Broken(run.reason)
        read_results(run, window=1)
    except Broken as broken:
        notes.append(f"return after the cut unknown ({broken}): {folder}")
        return "-"
    return "-" if np.isnan(run.value("after_cut")) else f"{run.value('after_cut'):.1f}"


def column(folder: Path, notes: list[str]) -> dict[str, str]:
    """The cells of a run, from its summary.json and curves.csv; `-` is what it did not measure, or what is noted."""
    summary = json.loads((folder / "summary.json").read_text())
    moments, entries = summary.get("eval", {}), summary.get("parameters", summary["total"])
    zeros = entries - summary["nonzero"]
    speeds = {
        when: summary["time"].get(f"agent_steps_per_second_{when}") for when in ("while_learning", "before_cut", "after_cut")
    }
    cells = {"agent steps": f"{summary['global_step']:,}"}
    cells |= {"games per moment": " / ".join(str(moments[name]["n"]) for name in MOMENTS if name in moments) or "-"}
    cells |= {label: score(moments.get(name)) for name, label in MOMENTS.items()}
    cells |= {"return after the cut": return_after_cut(folder, notes)}
    cells |= {"parameters": f"{entries:,} ({entries / summary['total']:.2f}x)"}
    cells |= {"zeros": f"{zeros:,} of {entries:,} ({zeros / entries:.1%})"}
    cells |= {label: size(summary, name) for name, label in FORMATS.items()}
    whole, *parts = ["-" if speed is None else f"{speed:.0f}" for speed in speeds.values()]
    return cells | {"agent steps per second": whole, "before / after the cut": " / ".join(parts)}


def labels(runs: list[str]) -> list[str]:
    """Names of the folders without the parts, between `__`, that all of them share; paths where that makes two the same."""
    names = [Path(run).absolute().name.split("__") for run in runs]
    shared = set.intersection(*map(set, names))
    short = ["__".join(part for part in name if part not in shared) or "__".join(name) for name in names]
    return short if len(set(short)) == len(runs) else runs


def print_table(runs: tuple[str, ...]) -> None:
    finished, others = {}, []
    for run in runs:
        try:
            notes: list[str] = []
            finished[run] = column(Path(run), notes)
            others += notes
        except (FileNotFoundError, NotADirectoryError):
            others.append(f"unfinished, no summary.json: {run}" if Path(run).is_dir() else f"no such folder: {run}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            others.append(f"broken, summary.json cannot be read ({type(error).__name__}): {run}")
    if finished:
        print(pd.DataFrame(finished).set_axis(labels(list(finished)), axis=1).to_string())
        print("Return before the cut, right after it (the last of several), at the end: mean of its games [95 % interval].")
        print("Return after the cut: of training games, mean of ten equal bins of agent steps; - where a bin has no game.")
        print("x: times the network before the cut. Speeds can be compared only if the machine was equally busy.")
    for line in others:
        print(line)
    if not finished:
        raise UserError("no finished run; usage: python -m analysis.table RUN...")


def main() -> None:
    with exit_codes():
        print_table(tyro.cli(Args, prog="python -m analysis.table", description=__doc__).runs)


if __name__ == "__main__":
    main()
