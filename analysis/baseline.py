"""How far is the dense baseline from CleanRL's? Its own runs beside the dense runs of the declared study."""

import numpy as np
import pandas as pd

from analysis import paired
from analysis.design import BINS, CLEANRL
from analysis.measures import interval
from analysis.studies import Study

MARKS = {"quarter": 0.25, "half": 0.5}
"""points of the training, as shares of its agent steps; each stands for the twentieth of the steps that ends there"""


def cleanrl_games(study: Study) -> list[tuple[np.ndarray, np.ndarray]]:
    """Agent steps and returns of the training games of CleanRL's runs; none beside a study that is not the declared one."""
    if not (study.declares and CLEANRL.is_file()):
        return []
    table = pd.read_csv(CLEANRL)
    runs = table[table.algorithm == study.first.algorithm].groupby("seed")
    return [(run.global_step.to_numpy(), run.episodic_return.to_numpy()) for _, run in runs]


def levels(games: tuple[np.ndarray, np.ndarray], study: Study) -> list[float]:
    """Mean training return in the twentieth before each mark, the return after the cut, and the late return."""
    end, cut = study.steps, min(study.cuts)
    before_marks = [float(paired.binned(*games, (mark - 0.05) * end, mark * end, 1)[0]) for mark in MARKS.values()]
    bins = paired.binned(*games, cut, end, BINS)
    return [*before_marks, float(bins.mean()), float(bins[-1])]


def baseline_table(study: Study) -> list[dict]:
    """A row of our dense runs, one of CleanRL's, and one of the difference of their means."""
    games = cleanrl_games(study)
    if not games or not study.dense:
        return []
    nothing = np.zeros(0), np.zeros(0)
    dense = [[run.curves.get("charts/episodic_return", nothing) for run in runs] for runs in study.dense.runs.values()]
    ours = np.array([np.mean([levels(of_run, study) for of_run in of_seed], axis=0) for of_seed in dense])
    theirs = np.array([levels(of_run, study) for of_run in games])
    rows = []
    for program, seeds, intervals in (
        ("this project, dense", len(ours), paired.t_interval(ours.T)),
        ("CleanRL", len(theirs), paired.t_interval(theirs.T)),
        ("difference", None, paired.welch_interval(ours.T, theirs.T)),
    ):
        row = {"study": study.label, "program": program, "seeds": seeds}
        for name, *ends in zip([*MARKS, "after_cut", "late"], *intervals, strict=True):
            row |= interval(name, ends)
        rows.append(row)
    return rows
