"""The figures of a report: return against rate, moments, curves, sparsity, bytes, speed; a facet a study and game.

Rates are told apart by brightness, marker and dashes, criteria by colour, marker and place, so that all can be read in grey.
"""

import math
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from evals import storage
from scripts import paired

COLOURS = {"none": "black", "l1": "#D55E00", "random": "#0072B2", "A/A": "#CC79A7", "small": "#009E73"}  # Okabe and Ito's
MARKERS = {"none": "D", "l1": "o", "random": "s", "A/A": "X", "small": "^"}
RATE_MARKERS, RATE_DASHES = "osDv^P<X>*", ["-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]
MOMENTS = {"before_prune": "before\nthe cut", "after_prune": "right\nafter it", "final": "at\nthe end"}
GRID = 200  # points of a curve
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.framealpha": 0.9, "lines.linewidth": 1.3}
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "report", "figure.dpi": 150, "savefig.dpi": 150}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "lines.markersize": 5}


def save(figure, out: Path, name: str) -> None:
    """As PNG and SVG, the same bytes for the same numbers."""
    figure.savefig(out / f"{name}.png")
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def facets(columns: int, rows: int = 1, height: float = 3.3, width: float = 4.8):
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    return figure, axes


def a_facet_a_study(studies: list, height: float = 3.3, width: float = 5.2):
    """A figure with two facets a row, and (study, axes) of each."""
    columns = min(2, len(studies))
    figure, axes = facets(columns, math.ceil(len(studies) / columns), height, width)
    for ax in axes.flat[len(studies) :]:
        ax.remove()
    for ax, study in zip(axes.flat, studies, strict=False):
        ax.set_title(fill(study.label, 60))
    return figure, list(zip(studies, axes.flat, strict=False))


def a_row_a_study(studies: list, height: float):
    """A figure with a column a criterion, and for each study (criterion, arms, axes) of its facets."""
    kept = [(study, study.by_criterion()) for study in studies]
    figure, axes = facets(max(len(criteria) for _, criteria in kept), len(kept), height)
    rows = []
    for (study, criteria), row in zip(kept, axes, strict=True):
        for ax in row[len(criteria) :]:
            ax.remove()
        for criterion, ax in zip(criteria, row, strict=False):
            ax.set_title(f"{fill(study.label, 60)}\n{criterion}")
        rows.append([(criterion, arms, ax) for (criterion, arms), ax in zip(criteria.items(), row, strict=False)])
    return figure, rows


def same_scale(row: list) -> None:
    low, high = min(ax.get_ylim()[0] for ax in row), max(ax.get_ylim()[1] for ax in row)
    for ax in row:
        ax.set_ylim(low, high)


def below(figure) -> None:
    """One legend for the whole figure, under it: rates in their order, whichever facet has them."""
    told = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    rates = {label: float(label.removeprefix("rate ")) for label in told if label.startswith("rate ")}
    told = {label: told[label] for label in sorted(told, key=lambda label: rates.get(label, 1 if label == "cut" else -1))}
    if told:
        figure.legend(told.values(), told.keys(), loc="outside lower center", ncols=min(len(told), 6 if len(told) > 8 else 8))


def shades(studies: list) -> dict[float | str, dict]:
    """Colour, marker and dashes of each rate in a report: the higher the rate the lighter, dense in black; of A/A arms too."""
    rates = sorted({arm.rate for study in studies for arm in study.arms if arm.rate})
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, max(len(rates), 1)))
    told = zip(rates, colours, cycle(RATE_MARKERS), cycle(RATE_DASHES), strict=False)
    styles = {rate: {"color": c, "marker": m, "linestyle": d, "label": f"rate {rate:g}"} for rate, c, m, d in told}
    dense, equal = ({"color": COLOURS[kind], "marker": MARKERS[kind], "linestyle": "-"} for kind in ("none", "A/A"))
    return {0.0: dense | {"label": "dense"}, "A/A": equal | {"label": "A/A"}} | styles


def moved(ax, points: float):
    """Data coordinates that many points further right."""
    return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)


def with_interval(ax, x: float, interval, dots, style: dict, points: float = 0.0) -> None:
    """A mean with its interval, that many points right of x, and left of it a dot a seed; one seed alone is its mean."""
    mean, low, high = interval
    if len(dots) > 1:
        beside = moved(ax, points - 4.5)
        ax.plot(np.full(len(dots), x), dots, ".", color=style["color"], alpha=0.6, ms=4, mew=0, transform=beside)
    half = None if np.isnan(low) else np.maximum([[mean - low], [high - mean]], 0)  # rounded, an end may lie beyond the mean
    ax.errorbar(x, mean, yerr=half, capsize=3, linestyle="none", transform=moved(ax, points), **style)
    ends = [mean, *dots, *([] if half is None else [low, high])]
    ax.update_datalim(np.column_stack([np.full(len(ends), x), ends]))  # what is moved aside does not count otherwise
    ax.autoscale_view()


def position(study, arm) -> float:
    """Where an arm stands on the axis of rates; a smaller dense network where a pruned one has as many parameters."""
    if arm.kind != "small" or not study.dense:
        return arm.rate
    (dense, *_), (small, *_) = study.dense.runs.values(), arm.runs.values()
    return 1 - small.summary["total"] / dense.summary["total"]


def scatter_by_rate(study, ax, measure, line: bool) -> None:
    """Interval and dots (what `measure` makes of an arm) against rate; arms of one rate stand side by side."""
    criteria, spare = list(dict.fromkeys(arm.criterion for arm in study.arms if arm.rate)), cycle("vP<>*")
    lanes = {criterion: 9.0 * (k - (len(criteria) - 1) / 2) for k, criterion in enumerate(criteria)}  # points
    lanes |= {arm.criterion: -10.0 for arm in study.arms if arm.kind == "A/A"}
    series: dict[str, list] = {}
    for arm in study.arms:
        if (found := measure(arm)) is not None:
            series.setdefault(arm.criterion, []).append((position(study, arm), *found, arm.kind))
    drawn: list = []
    for criterion, points in series.items():
        kind = points[0][-1]
        first = kind not in [told for *_, told in drawn]
        style = {"color": COLOURS[kind], "marker": MARKERS[kind] if first else next(spare)}
        drawn += points
        lane = lanes.get(criterion, 0.0)
        for k, (x, interval, dots, _) in enumerate(points):
            with_interval(ax, x, interval, dots, style | {"label": criterion if k == 0 else None}, lane)
        if line:
            means = [mean for _, (mean, *_), *_ in points]
            ax.plot([x for x, *_ in points], means, color=style["color"], lw=0.8, alpha=0.6, transform=moved(ax, lane))
    ax.set_xlabel("prune rate (share of every tensor)")
    ax.set_xlim(-0.06, max(ax.get_xlim()[1], 0.06))


def return_against_rate(studies: list, out: Path) -> None:
    def level(arm):
        scores = arm.scores("final")
        return (paired.t_interval(scores), scores) if len(scores) else None

    figure, pairs = a_facet_a_study(studies)
    for study, ax in pairs:
        if study.dense and len(dense := study.dense.scores("final")):
            ax.axhline(np.mean(dense), color="black", lw=0.8, ls=":")
        ax.set_ylabel("return at the end (game score)")
        scatter_by_rate(study, ax, level, line=True)
    below(figure)
    save(figure, out, "return_against_rate")


def change_against_rate(studies: list, out: Path, margin: float) -> None:
    """In per cent of the dense mean: of studies where that is above 0."""

    def change(arm):
        scores, dense = arm.paired_scores("final")
        known = len(scores) and dense.mean() > 0
        return (paired.ratio_interval(scores - dense, dense), (scores - dense) / dense.mean()) if known else None

    shown = [study for study in studies if any(change(arm) for arm in study.arms)]
    if not shown:
        return
    figure, pairs = a_facet_a_study(shown)
    for study, ax in pairs:
        ax.axhline(0, color="black", lw=0.8)
        ax.axhline(-margin, color="black", lw=0.8, ls=":", label=f"margin, {-margin:.0%}")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_ylabel("change of the return at the end\nagainst the dense twin")
        scatter_by_rate(study, ax, change, line=False)
    below(figure)
    save(figure, out, "change_against_rate")


def moments(studies: list, styles: dict, out: Path) -> None:
    figure, rows = a_row_a_study(studies, 3.2)
    for columns in rows:
        for _, arms, ax in columns:
            for k, arm in enumerate(arms):
                style, shift = styles[arm.rate], (k - (len(arms) - 1) / 2) * 0.6 / len(arms)
                plain, means = {"color": style["color"], "marker": style["marker"]}, []
                for x, moment in enumerate(MOMENTS):
                    scores = arm.scores(moment)
                    means.append(np.mean(scores) if len(scores) else np.nan)
                    if len(scores):
                        with_interval(ax, x + shift, paired.t_interval(scores), scores, plain)
                ax.plot(np.arange(3) + shift, means, **style)
            ax.set_xticks(range(3), MOMENTS.values())
            ax.set(ylabel="return (game score)", xlim=(-0.45, 2.45))
        same_scale([ax for *_, ax in columns])
    below(figure)
    save(figure, out, "moments")


def sampled(run, tag: str, window: int) -> np.ndarray:
    """Mean of the last `window` rows of a tag (from half of them on) at GRID points over the run; nan before the first."""
    rows = run.curves.get(tag)
    if rows is None:
        return np.full(GRID, np.nan)
    steps, values = rows
    smooth = pd.Series(values).rolling(window, min_periods=(window + 1) // 2).mean().to_numpy()
    last = np.searchsorted(steps, np.linspace(0, run.summary["global_step"], GRID), side="right") - 1
    return np.where(last >= 0, smooth[last], np.nan)


def mean_curve(arm, tag: str, window: int) -> np.ndarray:
    """Mean over the seeds of an arm, where all of them have a value."""
    return np.mean([sampled(run, tag, window) for run in arm.runs.values()], axis=0)


def steps_axis(ax, study) -> None:
    last = study.steps
    unit, name = (1e6, "millions") if last >= 1e6 else (1e3, "thousands") if last >= 10_000 else (1, "")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:g}"))
    ax.set_xlim(0, last)
    if ax.get_subplotspec().is_last_row():
        ax.set_xlabel(f"agent steps{', ' * bool(name)}{name} (4 frames each)")
    for cut in sorted(study.cuts):
        ax.axvline(cut, color="grey", lw=1, ls=":", label="cut")


def curves(study, styles: dict, tags: dict[str, str], out: Path, name: str, window: int, raw: bool) -> None:
    """A row of facets a tag, a column a criterion, the A/A arms in each; raw: the values themselves too, faint."""
    columns, kept = study.by_criterion(), {tag for arm in study.arms for run in arm.runs.values() for tag in run.curves}
    if not (tags := {tag: label for tag, label in tags.items() if tag in kept}):
        return
    figure, axes = facets(len(columns), len(tags), 2.6 if raw else 3.4, 5.2 if len(columns) > 1 else 7)
    x, equals = np.linspace(0, study.steps, GRID), [arm for arm in study.arms if arm.kind == "A/A"]
    for (criterion, arms), column in zip(columns.items(), axes.T, strict=True):
        for (tag, label), ax in zip(tags.items(), column, strict=True):
            for k, arm in enumerate(arms + equals):  # the dense curve comes first, and lies on top
                style = styles["A/A" if arm in equals else arm.rate]
                style = style | {"markevery": (5 + 7 * k, 40), "zorder": 3 if k == 0 else 2}
                if raw:
                    ax.plot(x, mean_curve(arm, tag, 1), color=style["color"], lw=0.5, alpha=0.25)
                ax.plot(x, mean_curve(arm, tag, window), **style)
            steps_axis(ax, study)
            ax.set_ylabel(label)
        column[0].set_title(f"{fill(study.label, 60)}\n{criterion}")
    for row in axes:
        same_scale(list(row))
    below(figure)
    save(figure, out, name)


def sparsity(studies: list, styles: dict, out: Path) -> None:
    pruned = [study for study in studies if any(arm.rate for arm in study.arms)]
    if not pruned:
        return
    figure, rows = a_row_a_study(pruned, 3.6)
    for _, arms, ax in [facet for columns in rows for facet in columns]:
        for arm in [arm for arm in arms if arm.rate]:
            tensors = [run.summary["tensors"] for run in arm.runs.values()]
            shares = [[t["pruned"] / t["total"] for t in found.values()] for found in tensors]
            ax.plot(list(tensors[0]), np.mean(shares, axis=0), **styles[arm.rate])
        plt.setp(ax.get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor")
        ax.set(ylabel="sparsity (share of zeros)", ylim=(0, 1.03))
    below(figure)
    save(figure, out, "sparsity")


def disk(studies: list, out: Path) -> None:
    figure, pairs = a_facet_a_study(studies, 3.8, 6.4)
    for study, ax in pairs:
        arms = [arm for arm in study.arms if arm.kind not in ("A/A", "small")] or study.arms
        found = pd.DataFrame([{"rate": r.summary["sparsity"]} | r.summary["disk"] for a in arms for r in a.runs.values()])
        means = found.groupby(found.rate.round(4)).mean()
        dense = means.dense.mean()
        by_formula = next(iter(arms[0].runs.values())).summary.get("disk_break_even_rate", {})
        dashes, markers = cycle(RATE_DASHES[1:]), cycle("ovs^P<X>*")
        colours = cycle(["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"])
        for name in [name for name in means if name not in ("dense", "rate")]:
            sizes = means[name].dropna()
            even = storage.crossing(sizes.index, sizes / dense)
            label = name.replace("_", " ")
            if even is not None:
                label += f", smaller from {even:.2f} on" if even else ", always smaller"
            elif name in by_formula:
                label += f", smaller from {by_formula[name]:.2f} on, by formula"
            colour = next(colours)
            line, marker, fine = next(dashes), next(markers), np.linspace(sizes.index[0], sizes.index[-1], GRID)
            ax.plot(
                fine, np.interp(fine, sizes.index, sizes / 1e6), color=colour, ls=line
            )  # straight in bytes, bent on this axis
            ax.plot(sizes.index, sizes / 1e6, color=colour, ls="none", marker=marker)
            ax.plot([], [], color=colour, ls=line, marker=marker, label=label)
            if even:
                ax.plot(even, dense / 1e6, "|", color=colour, ms=14, mew=2)
        ax.axhline(dense / 1e6, color="black", label="dense")
        ax.set(xlabel="sparsity (share of zeros)", ylabel="file of the final network, MB", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7), numticks=20))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, out, "bytes")


def speed(studies: list, out: Path) -> None:
    """Steps per second by arm, and GPU utilisation where a run measured it."""
    measures = {"agent_steps_per_second_while_learning": "agent steps a second,\nwhile learning"}
    times = [run.summary["time"] for study in studies for arm in study.arms for run in arm.runs.values()]
    if any(t.get("mean_gpu_utilisation_percent") is not None for t in times):
        measures["mean_gpu_utilisation_percent"] = "mean GPU utilisation, %"
    pairs = [(study, key, label) for study in studies for key, label in measures.items()]
    columns = min(2, len(pairs))
    figure, axes = facets(columns, math.ceil(len(pairs) / columns), 3.4, 5.2)
    for ax in axes.flat[len(pairs) :]:
        ax.remove()
    for (study, key, label), ax in zip(pairs, axes.flat, strict=False):
        for x, arm in enumerate(study.arms):
            if len(values := arm.values(lambda run, key=key: run.summary["time"].get(key))):
                style = {"color": COLOURS[arm.kind], "marker": MARKERS[arm.kind]}
                with_interval(ax, x, paired.t_interval(values), values, style)
        labels = [arm.label for arm in study.arms]
        ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
        ax.set(title=fill(study.label, 60), ylabel=label, ylim=(0, 1.1 * ax.get_ylim()[1]))
    save(figure, out, "speed")
