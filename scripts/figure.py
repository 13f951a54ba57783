"""Draw training curves of runs with the cut and the evaluations marked: python scripts/figure.py RUN... --out FILE.

A RUN is a run folder (or a folder of results/): curves.csv, eval.csv and summary.json are read.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import tyro

COLOURS = {"none": "#0072B2", "l1": "#D55E00", "random": "#009E73"}  # Okabe and Ito's, told apart by the colour-blind


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders"""
    out: Path = Path("curves.png")
    """PNG or SVG file to write"""
    window: int = 50
    """games of the moving average of the training return"""


def main(args: Args) -> None:
    summaries = {run: json.loads((run / "summary.json").read_text()) for run in args.runs}
    algorithms = sorted({s["algorithm"] for s in summaries.values()})
    _, axes = plt.subplots(1, len(algorithms), figsize=(5.5 * len(algorithms), 3.6), sharey=True, squeeze=False)
    for run, summary in summaries.items():
        ax, colour = axes[0][algorithms.index(summary["algorithm"])], COLOURS[summary["prune_type"]]
        curves = pd.read_csv(run / "curves.csv")
        games = curves[curves.tag == "charts/episodic_return"]
        mean = games.value.rolling(args.window, min_periods=args.window).mean()
        ax.plot(games.global_step / 1e3, mean, color=colour, lw=1.2, label=f"{summary['arm']}, seed {summary['seed']}")
        shift = {"none": -1, "random": 0, "l1": 1}[summary["prune_type"]] * summary["global_step"] / 1e3 / 100
        games_of = pd.read_csv(run / "eval.csv").groupby("moment").global_step.first() / 1e3
        for moment, marker in (("before_prune", "o"), ("after_prune", "v"), ("final", "s")):
            score = summary["eval"][moment]
            beside = games_of[moment] + shift + (summary["global_step"] / 1e3 / 40 if moment == "after_prune" else 0)
            half = None if score["ci95"] is None else score["mean"] - score["ci95"][0]
            ax.errorbar(beside, score["mean"], yerr=half, fmt=marker, ms=4, color=colour, capsize=2, lw=1)
        cut = curves[curves.tag == "prune/sparsity"].global_step.iloc[0] / 1e3
        ax.axvline(cut, color="grey", lw=0.8, ls=":")
    games_each = {score["n"] for s in summaries.values() for score in s["eval"].values()}
    for ax, algorithm in zip(axes[0], algorithms, strict=True):
        ax.set_title(f"{algorithm.upper()}, {summary['env_id']}", fontsize=10)
        ax.set_xlabel("agent steps, thousands (4 frames each)")
        ax.axhline(153, color="grey", lw=0.8)
        ax.annotate("random play", (0.99, 153), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        ax.legend(fontsize=8, loc="upper left")
    axes[0][0].set_ylabel("return (game score)")
    note = (
        f"line: mean of the last {args.window} training games; marks: {'/'.join(map(str, sorted(games_each)))} evaluation games"
    )
    plt.figtext(
        0.5, 0.01, f"{note} before (o) and after (v) the cut and at the end (square), 95 % interval", ha="center", fontsize=8
    )
    plt.tight_layout(rect=(0, 0.04, 1, 1))
    plt.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
