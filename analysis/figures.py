"""The figures of a report: return and change over time and against rate, curves, sparsity, bytes, speed.

Rates differ in brightness, marker and dashes; criteria in colour, marker and place. So all figures can be read in grey.
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

from analysis import paired
from analysis.baseline import cleanrl_games
from analysis.design import BINS, DECLARED, EQUAL, MARGIN, QUANTITIES
from analysis.measures import alike, changes_by_bin
from analysis.no_skill import NoSkill
from analysis.studies import Arm, Study, mean_bins
from prune_utils.run import CRITERIA

COLOURS = {"none": "black", "A/A": "#CC79A7", "small": "#009E73"}  # Okabe and Ito's
COLOURS |= dict(zip(CRITERIA, cycle(["#D55E00", "#0072B2", "#E69F00", "#56B4E9", "#F0E442", "#999999"]), strict=False))
MARKERS = {"none": "D", "A/A": "X", "small": "^"} | dict(zip(CRITERIA, cycle("osP<>"), strict=False))
RATE_MARKERS, RATE_DASHES = "osDv^P<X>*", ["-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]
MOMENTS = {"before_prune": "before\nthe cut", "after_prune": "right\nafter it", "final": "at\nthe end"}
GRID = 200  # points of a curve
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.framealpha": 0.9, "lines.linewidth": 1.3}
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "report", "figure.dpi": 150, "savefig.dpi": 150}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "lines.markersize": 5}
LOSSES = {
    "dqn": {"losses/td_loss": "TD loss", "losses/q_values": "mean Q value"},
    "ppo": {
        "losses/policy_loss": "policy loss",
        "losses/value_loss": "value loss",
        "losses/entropy": "entropy",
        "losses/approx_kl": "approximate KL",
        "losses/clipfrac": "share clipped",
        "losses/explained_variance": "explained variance",
    },
}

HEALTH = {
    "health/dormant_fc1": "dormant units of fc1",
    "health/effective_rank": "effective rank of fc1",
    "health/feature_norm": "norm of the features",
    "health/weight_norm": "norm of the weights",
    "health/q_mean": "mean Q value",
    "health/q_std": "deviation of Q",
    "health/entropy": "entropy",
}


def draw(studies: list[Study], out: Path, window: int, no_skill: dict[str, NoSkill]) -> list[str]:
    """Draw all figures into a folder. Returns which are left out, and why."""
    styles, left_out = shades(studies), []
    with plt.rc_context(STYLE):
        measured = [study for study in studies if any(len(arm.quantity("after_cut")) for arm in study.arms)]
        for study in studies:
            if study not in measured:
                left_out.append(f"returns of {study.label}: no run has games in each tenth of the steps after the cut")
                continue
            headline(study, out, no_skill)
            if any(arm.rate and share(arm, "after_cut") for arm in study.arms):
                difference(study, styles, out)
            else:
                left_out.append(f"changes of {study.label}: no pruned run has a dense twin, or mean returns are below 0")
        if measured:
            return_against_rate(measured, out, no_skill)
            size(measured, out, no_skill)
        changed = [study for study in studies if any(share(arm, name) for arm in study.arms for name in QUANTITIES)]
        if changed:
            change_against_rate(changed, out)
        if scored := [study for study in studies if any(len(arm.quantity("final")) for arm in study.arms)]:
            moments(scored, styles, out, no_skill)
        else:
            left_out.append("evaluations: no run played evaluation games")
        for study in studies:
            training = {"charts/episodic_return": f"training return, mean of {window} games"}
            if not curves(study, styles, training, out, f"training_{study.slug}", window, no_skill):
                left_out.append(f"training curves of {study.label}: fewer than {(window + 1) // 2} games")
            if not curves(study, styles, LOSSES[study.first.algorithm], out, f"losses_{study.slug}", window, None):
                left_out.append(f"losses of {study.label}: none were logged")
            curves(study, styles, HEALTH, out, f"health_{study.slug}", 1, {})
            shown = with_curves(study)
            if few := [arm.label for arm in study.arms if arm.kind != "small" and arm not in shown]:
                left_out.append(f"curves of {study.label}, {', '.join(few)}: fewer than half of the seeds of another arm")
        if not sparsity(studies, styles, out):
            left_out.append("sparsity: no run was pruned")
        stored = [study for study in studies if any("structured" not in arm.kind for arm in study.arms)]
        told = "units were removed, and there is no dense run to compare with"
        left_out += [f"bytes on disk of {study.label}: {told}" for study in studies if study not in stored]
        if stored:
            disk(stored, out)
        if not speed(studies, out):
            left_out.append("speed: no run measured it")
    return left_out


def save(figure, out: Path, name: str) -> None:
    """Save as PNG and SVG. The same numbers give the same bytes."""
    figure.savefig(out / f"{name}.png")
    figure.set_layout_engine("none")  # both have the layout of the first, which takes as long as drawing
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def facets(columns: int, rows: int = 1, height: float = 3.3, width: float = 4.8):
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    return figure, axes


def facet_per_study(studies: list[Study], height: float = 3.3, width: float = 5.2):
    """A figure with two facets per row, and (study, axes) of each."""
    columns = min(2, len(studies))
    figure, axes = facets(columns, math.ceil(len(studies) / columns), height, width)
    for ax in axes.flat[len(studies) :]:
        ax.remove()
    for ax, study in zip(axes.flat, studies, strict=False):
        ax.set_title(fill(study.label, 60))
    return figure, list(zip(studies, axes.flat, strict=False))


def facet_per_criterion(study: Study, criteria: list[str], rows: int = 1):
    """A figure with a column per criterion, and its axes. Many columns are narrow: a page shows about 14 inches legibly."""
    width = min(5.2, 14 / len(criteria)) if len(criteria) > 1 else 7
    figure, axes = facets(len(criteria), rows, 3.4 if rows == 1 else max(1.7, width / 2), width)
    figure.suptitle(fill(study.label, 60), fontsize=STYLE["axes.titlesize"])
    for criterion, ax in zip(criteria, axes[0], strict=True):
        ax.set_title(criterion)
    return figure, axes


def row_per_study(studies: list[Study], height: float):
    """A figure with one column per criterion, and for each study (arms, axes) of its facets."""
    by_criterion = [study.by_criterion() for study in studies]
    figure, axes = facets(max(map(len, by_criterion)), len(studies), height)
    rows = []
    for study, criteria, row in zip(studies, by_criterion, axes, strict=True):
        for ax in row[len(criteria) :]:
            ax.remove()
        for criterion, ax in zip(criteria, row, strict=False):
            ax.set_title(f"{fill(study.label, 60)}\n{criterion}")
        rows.append(list(zip(criteria.values(), row, strict=False)))
    return figure, rows


def same_scale(row: list) -> None:
    low, high = min(ax.get_ylim()[0] for ax in row), max(ax.get_ylim()[1] for ax in row)
    for ax in row:
        ax.set_ylim(low, high)


def cut_long_intervals(row: list) -> None:
    """Give axes one scale: that of their means and dots, and at most as much again on both sides.

    With few seeds an interval can be many times as long. Its ends then leave the figure.
    """
    caps = {cap for ax in row for bars in ax.containers for cap in bars[1]}
    lines = [line for ax in row for line in ax.lines if line not in caps and line.get_label() != "cut"]  # that one is upright
    values = np.array([y for line in lines for y in line.get_ydata()], float)
    same_scale(row)
    if np.isnan(values).all():
        return
    least, most = np.nanmin(values), np.nanmax(values)
    room, (low, high) = max(most - least, abs(most) / 4, abs(least) / 4) or 1.0, row[0].get_ylim()
    for ax in row:
        ax.set_ylim(max(low, least - room), min(high, most + room))


def legend_below(figure, most: int = 8) -> None:
    """One legend below the whole figure, with rates in their order, whichever facet has them."""
    handles = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    rates = {label: float(label.removeprefix("rate ")) for label in handles if label.startswith("rate ")}
    labels = sorted(handles, key=lambda label: rates.get(label, 1 if label == "cut" else -1))
    if labels:
        widest = 0.6 + 0.075 * max(map(len, labels))  # inches of its handle and text
        columns = min(len(labels), most, 6 if len(labels) > 8 else 8, max(1, int(figure.get_figwidth() / widest)))
        figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns)


def shades(studies: list[Study]) -> dict[float | str, dict]:
    """Colour, marker and dashes of each rate and of A/A arms: dense is black, and higher rates are lighter."""
    rates = sorted({arm.rate for study in studies for arm in study.arms if arm.rate})
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, max(len(rates), 1)))
    looks = zip(rates, colours, cycle(RATE_MARKERS), cycle(RATE_DASHES), strict=False)
    styles = {rate: {"color": c, "marker": m, "linestyle": d, "label": f"rate {rate:g}"} for rate, c, m, d in looks}
    dense, equal = ({"color": COLOURS[kind], "marker": MARKERS[kind], "linestyle": "-"} for kind in ("none", "A/A"))
    return {0.0: dense | {"label": "dense"}, "A/A": equal | {"label": "A/A"}} | styles


def moved(ax, points: float):
    """Data coordinates, shifted right by so many points."""
    return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)


def with_interval(ax, x: float, interval, dots, style: dict, points: float = 0.0) -> None:
    """Draw a mean with its interval, shifted right of x by so many points, and one dot per seed left of it.

    One seed alone has only its mean.
    """
    mean, low, high = interval
    if len(dots) > 1:
        beside = moved(ax, points - 4.5)
        ax.plot(np.full(len(dots), x), dots, ".", color=style["color"], alpha=0.6, ms=4, mew=0, transform=beside)
    half = None if np.isnan(low) else np.maximum([[mean - low], [high - mean]], 0)  # rounded, an end may lie beyond the mean
    ax.errorbar(x, mean, yerr=half, capsize=3, linestyle="none", transform=moved(ax, points), **style)
    ends = [mean, *dots, *([] if half is None else [low, high])]
    ax.update_datalim(np.column_stack([np.full(len(ends), x), ends]))  # what is moved aside does not count otherwise
    ax.autoscale_view()


def position(study: Study, arm: Arm) -> float:
    """Where an arm stands on the axis of rates. A small dense network stands where a pruned one has as many parameters."""
    if arm.kind != "small" or not study.dense:
        return arm.rate
    dense, small = study.dense.all_runs[0], arm.all_runs[0]
    return 1 - small.summary["total"] / dense.summary["total"]


def floor(ax, study: Study, no_skill: dict[str, NoSkill]) -> None:
    """Lines at what no skill scores in the game of a study."""
    if found := no_skill.get(study.first.env_id):
        ax.axhline(found.held["mean"], color="#777777", lw=1, ls=(0, (4, 2)), label=f"no skill: {found.held['policy']} held")
        ax.axhline(found.random["mean"], color="#777777", lw=1, ls=":", label="no skill: random play")


def looks(study: Study) -> dict[str, dict]:
    """Colour and marker of each criterion. A variant has the colour of its criterion and another marker."""
    styles, spare, kinds = {}, cycle("vP<>*"), set()
    for criterion, kind in dict.fromkeys((arm.criterion, arm.kind) for arm in study.arms):
        styles[criterion] = {"color": COLOURS[kind], "marker": next(spare) if kind in kinds else MARKERS[kind]}
        kinds.add(kind)
    return styles


def fill_of(study: Study, arm: Arm, seeds: int) -> dict[str, str]:
    """Hollow markers for a mean over fewer seeds than dense has: it cannot be compared with the dense one."""
    whole = not study.dense or arm.kind == "small" or seeds >= len(study.dense.runs)
    return {} if whole else {"markerfacecolor": "none"}


def scatter_by_rate(study: Study, ax, measure, line: bool) -> None:
    """Interval and dots (what `measure` makes of an arm) against rate. Arms of one rate stand side by side.

    The line connects the means of arms that have all seeds of dense.
    """
    criteria, styles = list(dict.fromkeys(arm.criterion for arm in study.arms if arm.rate)), looks(study)
    lanes = {criterion: 5.0 * (k - (len(criteria) - 1) / 2) for k, criterion in enumerate(criteria)}  # points
    lanes |= {arm.criterion: -10.0 for arm in study.arms if arm.kind == "A/A"}
    series: dict[str, list] = {}
    for arm in study.arms:
        if (level := measure(arm)) is not None:
            series.setdefault(arm.criterion, []).append((position(study, arm), *level, fill_of(study, arm, len(level[1]))))
    for criterion, points in series.items():
        style, lane = styles[criterion], lanes.get(criterion, 0.0)
        label = criterion.replace("none", "dense", 1)
        ax.errorbar([], [], yerr=[], capsize=3, linestyle="none", label=label, **style)  # for the legend
        for x, interval, dots, filling in points:
            with_interval(ax, x, interval, dots, style | filling, lane)
        whole = [(x, mean) for x, (mean, *_), _, filling in points if not filling]
        if line and whole:
            ax.plot(*zip(*whole, strict=True), color=style["color"], lw=0.8, alpha=0.6, transform=moved(ax, lane))
    ax.set_xlabel("prune rate")
    ax.set_xlim(-0.11, max(ax.get_xlim()[1], 0.06) + 0.03)


def headline(study: Study, out: Path, no_skill: dict[str, NoSkill]) -> None:
    """Above, the training return of dense and the declared arm; below, its paired change.

    Where there is no declared arm, all arms are drawn.
    """
    declared = study.arm(DECLARED)
    shown = [declared] if declared else [arm for arm in study.arms if arm.rate]
    shown = [arm for arm in study.arms if arm in shown or arm.kind in ("none", "A/A")]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.2, 4.4), height_ratios=(3, 2), sharex=True, layout="constrained")
    for k, arm in enumerate(shown):
        style = {"color": COLOURS[arm.kind], "marker": MARKERS[arm.kind], "label": "dense" if arm.kind == "none" else arm.label}
        style |= {} if arm.kind in ("none", "A/A") or declared else {"ls": RATE_DASHES[k % len(RATE_DASHES)]}
        end, cut = arm.all_runs[0].summary["global_step"], arm.all_runs[0].cut_step
        centres = (np.arange(BINS) + 0.5) / BINS
        seeds = declared.twins.keys() & arm.runs.keys() if declared else set()  # one set for all means, where there is one
        of_seeds = [arm.runs[seed] for seed in sorted(seeds or arm.runs)]
        before, after = (mean_bins(of_seeds, name).mean(axis=1) for name in ("bins_before", "bins"))
        if arm.kind == "none":
            top.plot(cut * centres, before, **(style | {"label": None}))
        top.plot(cut + (end - cut) * centres, after, **style)
        (middle, low, high), pairs = changes_by_bin(arm)
        if pairs:
            x = cut + (end - cut) * centres
            bottom.plot(x, middle, **(style | {"label": None}))
            bottom.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    floor(top, study, no_skill)
    top.set_ylabel("training return")
    if top.dataLim.ymin >= 0:
        top.set_ylim(bottom=0)
    bottom.axhline(0, color="black", lw=0.8)
    bottom.axhline(-MARGIN, color="black", lw=0.8, ls=":", label=f"margin, {-100 * MARGIN:.0f} %")
    bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bottom.set_ylabel("change\nagainst dense")
    cut_long_intervals([bottom])
    for ax in (top, bottom):
        steps_axis(ax, study)
    legend_below(figure, 3)
    save(figure, out, f"headline_{study.slug}")


def difference(study: Study, styles: dict, out: Path) -> None:
    """The paired change of the training return in each bin after the cut, with its interval; a column per criterion."""
    columns, equals = study.by_criterion(), [arm for arm in study.arms if arm.kind == "A/A"]
    figure, axes = facet_per_criterion(study, list(columns))
    for arms, ax in zip(columns.values(), axes[0], strict=True):
        for k, arm in enumerate([arm for arm in arms if arm.twins] + equals):
            run = arm.all_runs[0]
            step = (run.summary["global_step"] - run.cut_step) / BINS
            x = run.cut_step + (np.arange(BINS) + 0.5 + 0.06 * (k - 2)) * step  # side by side
            (middle, low, high), _ = changes_by_bin(arm)
            style = styles["A/A" if arm in equals else arm.rate]
            ends = np.maximum(np.nan_to_num([middle - low, high - middle]), 0)
            ax.errorbar(x, middle, yerr=ends, elinewidth=0.8, capsize=1.5, **style)
        ax.axhline(0, color="black", lw=0.8)
        ax.axhline(-MARGIN, color="black", lw=0.8, ls=":", label=f"margin, {-100 * MARGIN:.0f} %")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_ylabel("change of the training return\nagainst the dense twin")
        steps_axis(ax, study)
        ax.set_xlim(min(study.cuts), 1.001 * study.steps)
    cut_long_intervals(list(axes[0]))
    legend_below(figure)
    save(figure, out, f"difference_{study.slug}")


def return_against_rate(studies: list[Study], out: Path, no_skill: dict[str, NoSkill]) -> None:
    def level(arm):
        scores = arm.quantity("after_cut")
        return (paired.t_interval(scores), scores) if len(scores) else None

    figure, pairs = facet_per_study(studies)
    for study, ax in pairs:
        if study.dense and len(dense := study.dense.quantity("after_cut")):
            ax.axhline(np.mean(dense), color="black", lw=0.8, ls=":")
        floor(ax, study, no_skill)
        ax.set_ylabel("return after the cut (game score)")
        scatter_by_rate(study, ax, level, line=True)
        cut_long_intervals([ax])
    legend_below(figure)
    save(figure, out, "return_against_rate")


SIZES = {
    "parameters that are left": lambda summary: summary["total"] - summary["pruned"],
    "bytes of the packed file": lambda summary: summary["disk"].get("packed"),
    "agent steps per second after the cut": lambda summary: summary["time"].get("agent_steps_per_second_after_cut"),
}


def size(studies: list[Study], out: Path, no_skill: dict[str, NoSkill]) -> None:
    """Return after the cut against what a cut or a small network saves, a row per study that has such arms."""
    studies = [study for study in studies if any(arm.kind == "small" or "structured" in arm.kind for arm in study.arms)]
    if not studies:
        return
    figure, axes = facets(len(SIZES), len(studies))
    for study, row in zip(studies, axes, strict=True):
        styles = looks(study)
        for (label, measure), ax in zip(SIZES.items(), row, strict=True):
            sizes = {arm: arm.values(lambda run, measure=measure: measure(run.summary)) for arm in study.arms}
            sizes = {arm: of.mean() for arm, of in sizes.items() if len(of) and len(arm.quantity("after_cut"))}
            largest = max(sizes.values(), default=1)
            groups = alike(sizes, EQUAL * largest)
            points = {arm: 6.0 * (k - (len(group) - 1) / 2) for group in groups for k, arm in enumerate(group)}  # aside
            for arm, x in sizes.items():
                style = styles[arm.criterion] | {"label": arm.criterion}
                scores = arm.quantity("after_cut")
                with_interval(ax, x, paired.t_interval(scores), scores, style | fill_of(study, arm, len(scores)), points[arm])
            floor(ax, study, no_skill)
            title, right = fill(study.label, 60), 1.08 * largest  # room for what stands beside the largest
            ax.set(xlabel=label, ylabel="return after the cut", title=title, xlim=(0, right))
    legend_below(figure)
    save(figure, out, "size")


def share(arm: Arm, quantity: str):
    """A change with its interval, and the change of each seed; None where it is no share of dense, or without a pair."""
    scores, dense = arm.contrast(quantity)
    if not len(scores) or dense.mean() <= 0 or not arm.shares:
        return None
    return paired.ratio_interval(scores - dense, dense), (scores - dense) / dense.mean()


def change_against_rate(studies: list[Study], out: Path) -> None:
    """A row per study, a column per quantity, the declared one first."""
    figure, axes = facets(len(QUANTITIES), len(studies), 3.2, 3.4)
    for study, row in zip(studies, axes, strict=True):
        for (quantity, heading), ax in zip(QUANTITIES.items(), row, strict=True):
            ax.axhline(0, color="black", lw=0.8)
            if quantity == "after_cut":
                ax.axhline(-MARGIN, color="black", lw=0.8, ls=":", label=f"margin, {-100 * MARGIN:.0f} %")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.set_title(heading)
            scatter_by_rate(study, ax, lambda arm, quantity=quantity: share(arm, quantity), line=False)
        row[0].set_ylabel(f"{fill(study.label, 40)}\nchange (shock: of the arm itself)")
        cut_long_intervals(list(row))
    legend_below(figure)
    save(figure, out, "change_against_rate")


def moments(studies: list[Study], styles: dict, out: Path, no_skill: dict[str, NoSkill]) -> None:
    figure, rows = row_per_study(studies, 3.2)
    for study, columns in zip(studies, rows, strict=True):
        for arms, ax in columns:
            floor(ax, study, no_skill)
            for k, arm in enumerate(arms):
                style, shift = styles[arm.rate], (k - (len(arms) - 1) / 2) * 0.6 / len(arms)
                filling = fill_of(study, arm, min(len(arm.quantity(moment)) for moment in MOMENTS))
                plain, means = {"color": style["color"], "marker": style["marker"]} | filling, []
                for x, moment in enumerate(MOMENTS):
                    scores = arm.quantity(moment)
                    means.append(np.mean(scores) if len(scores) else np.nan)
                    if len(scores):
                        with_interval(ax, x + shift, paired.t_interval(scores), scores, plain)
                ax.plot(np.arange(3) + shift, means, **style | filling)
            ax.set_xticks(range(3), MOMENTS.values())
            ax.set(ylabel="return (game score)", xlim=(-0.45, 2.45))
        cut_long_intervals([ax for _, ax in columns])
    legend_below(figure)
    save(figure, out, "moments")


def sampled(rows: tuple[np.ndarray, np.ndarray] | None, end: int, window: int) -> np.ndarray:
    """Mean of the last `window` rows (steps, values) at GRID points, of at least half a window; nan before that."""
    if rows is None:
        return np.full(GRID, np.nan)
    steps, values = rows
    smooth = pd.Series(values).rolling(window, min_periods=(window + 1) // 2).mean().to_numpy()
    last = np.searchsorted(steps, np.linspace(0, end, GRID), side="right") - 1
    return np.where(last >= 0, smooth[last], np.nan)


def mean_curve(arm: Arm, tag: str, window: int) -> np.ndarray:
    """Mean over the seeds of an arm, and over the runs of each seed, at points where all of them have a value."""
    curves = [[sampled(run.curves.get(tag), run.summary["global_step"], window) for run in runs] for runs in arm.runs.values()]
    return np.mean([np.mean(of_seed, axis=0) for of_seed in curves], axis=0)


def steps_axis(ax, study: Study) -> None:
    last = study.steps
    unit, name = (1e6, "million ") if last >= 1e6 else (1e3, "thousand ") if last >= 10_000 else (1, "")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:g}"))
    ax.set_xlim(0, 1.001 * last)  # PPO's whole rollouts end at 1,999,872 steps: the tick of 2 millions is seen
    ax.set_xlabel(f"{name}agent steps")
    ax.label_outer()  # axes of one figure share their steps, those of one row their scale
    for cut in sorted(study.cuts):
        ax.axvline(cut, color="grey", lw=1, ls=":", label="cut")


def with_curves(study: Study) -> list[Arm]:
    """The arms whose curves are drawn: those with at least half as many seeds as any other, so that means compare."""
    arms = [arm for arm in study.arms if arm.kind != "small"]
    most = max((len(arm.runs) for arm in arms), default=0)
    return [arm for arm in arms if 2 * len(arm.runs) >= most]


def curves(
    study: Study, styles: dict, tags: dict[str, str], out: Path, name: str, window: int, no_skill: dict[str, NoSkill] | None
) -> bool:
    """A row of facets per tag and a column per criterion, with the arms of `with_curves`, A/A in each. False if nothing is
    drawn.

    Returns have the lines of no skill. Losses (no_skill is None) also have the raw values, drawn faintly.
    """
    arms_shown, raw = with_curves(study), no_skill is None
    columns = {name: [arm for arm in arms if arm in arms_shown] for name, arms in study.by_criterion().items()}
    columns = {name: arms for name, arms in columns.items() if any(arm.rate for arm in arms)} or {"none": arms_shown[:1]}
    smooth = {(arm, tag): mean_curve(arm, tag, window) for arm in arms_shown for tag in tags}
    values = {(arm, tag): mean_curve(arm, tag, 1) for arm in arms_shown for tag in tags} if raw else smooth
    tags = {tag: label for tag, label in tags.items() if any(np.isfinite(values[arm, tag]).any() for arm in arms_shown)}
    if not tags:
        return False
    figure, axes = facet_per_criterion(study, list(columns), len(tags))
    x, equals = np.linspace(0, study.steps, GRID), [arm for arm in arms_shown if arm.kind == "A/A"]
    first = x[np.isfinite(list(values.values())).any(axis=0).argmax()]
    cleanrl = [sampled(games, study.steps, window) for games in cleanrl_games(study)]
    for arms, column in zip(columns.values(), axes.T, strict=True):
        for (tag, label), ax in zip(tags.items(), column, strict=True):
            for k, arm in enumerate(arms + equals):  # the dense curve comes first, and lies on top
                style = styles["A/A" if arm in equals else arm.rate]
                style = style | {"markevery": (5 + 7 * k, 40), "zorder": 3 if k == 0 else 2}
                if raw:
                    ax.plot(x, values[arm, tag], color=style["color"], lw=0.5, alpha=0.25)
                ax.plot(x, smooth[arm, tag], **style)
            if cleanrl and tag == "charts/episodic_return":
                ax.plot(x, np.mean(cleanrl, axis=0), color="#777777", label=f"CleanRL, n = {len(cleanrl)}", zorder=1.5)
            floor(ax, study, no_skill or {})
            ax.set_ylabel(label)
            steps_axis(ax, study)
            if 0 < min(study.cuts, default=0) <= first:  # dense runs that were forked may have no health before the cut
                ax.set_xlim(left=first)
    for row in axes:
        same_scale(list(row))
    legend_below(figure)
    save(figure, out, name)
    return True


def sparsity(studies: list[Study], styles: dict, out: Path) -> bool:
    pruned = [study for study in studies if any(arm.rate for arm in study.arms)]
    if not pruned:
        return False
    figure, rows = row_per_study(pruned, 3.6)
    for arms, ax in [facet for columns in rows for facet in columns]:
        for arm in [arm for arm in arms if arm.rate]:
            tensors = [run.summary["tensors"] for run in arm.all_runs]
            shares = [[counts["pruned"] / counts["total"] for counts in of_run.values()] for of_run in tensors]
            ax.plot(list(tensors[0]), np.mean(shares, axis=0), **styles[arm.rate])
        plt.setp(ax.get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor")
        ax.set(ylabel="sparsity (share of entries removed)", ylim=(0, 1.03))
    legend_below(figure)
    save(figure, out, "sparsity")
    return True


def crossing(sparsity, ratios) -> float | None:
    """The sparsity from which on a ratio stays below 1, interpolated linearly; None if it ends above 1.

    If all ratios are below 1, it is the least sparsity that was measured.
    """
    sparsity, ratios = np.asarray(sparsity), np.asarray(ratios)
    above = np.flatnonzero(ratios >= 1)
    if not len(above):
        return float(sparsity[0])
    if above[-1] == len(ratios) - 1:
        return None
    (s0, s1), (r0, r1) = sparsity[above[-1] :][:2], ratios[above[-1] :][:2]
    return float(s0 + (s1 - s0) * (r0 - 1) / (r0 - r1))


def disk(studies: list[Study], out: Path) -> None:
    figure, pairs = facet_per_study(studies, 3.8, 6.4)
    for study, ax in pairs:
        arms = [arm for arm in study.arms if "structured" not in arm.kind]
        arms = [arm for arm in arms if arm.kind not in ("A/A", "small")] or arms
        sizes = pd.DataFrame([{"rate": r.summary["sparsity"]} | r.summary["disk"] for a in arms for r in a.all_runs])
        means = sizes.groupby(sizes.rate.round(4)).mean()
        dense = means.dense.mean()
        dashes, markers = cycle(RATE_DASHES[1:]), cycle("ovs^P<X>*")
        colours = cycle(["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"])
        for name in [name for name in means if name not in ("dense", "rate")]:
            sizes = means[name].dropna()
            even = crossing(sizes.index, sizes / dense)
            label = name.replace("_", " ")
            always = bool((sizes < dense).all())
            if even is not None:
                label += ", always smaller" if always else f", smaller from {even:.2f} on"
            colour, line, marker = next(colours), next(dashes), next(markers)
            fine = np.linspace(sizes.index[0], sizes.index[-1], GRID)  # straight in bytes, bent on this axis
            ax.plot(fine, np.interp(fine, sizes.index, sizes / 1e6), color=colour, ls=line)
            ax.plot(sizes.index, sizes / 1e6, color=colour, ls="none", marker=marker)
            ax.plot([], [], color=colour, ls=line, marker=marker, label=label)
            if even and not always:
                ax.plot(even, dense / 1e6, "|", color=colour, ms=14, mew=2)
        ax.axhline(dense / 1e6, color="black", label="dense")
        ax.set(xlabel="sparsity (share of zeros)", ylabel="file of the final network, MB", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7), numticks=20))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, out, "bytes")


def speed(studies: list[Study], out: Path) -> bool:
    """Steps per second by arm."""
    name = "agent_steps_per_second_while_learning"
    studies = [study for study in studies if any(run.summary["time"].get(name) for run in study.arm_runs)]
    if not studies:
        return False
    figure, pairs = facet_per_study(studies, 3.4)
    for study, ax in pairs:
        arms = [arm for arm in study.arms if arm.kind != "A/A"]
        for x, arm in enumerate(arms):
            if len(values := arm.values(lambda run: run.summary["time"].get(name))):
                style = {"color": COLOURS[arm.kind], "marker": MARKERS[arm.kind]}
                with_interval(ax, x, paired.t_interval(values), values, style)
        labels = [arm.label for arm in arms]
        ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
        cut_long_intervals([ax])
        ax.set(ylabel="agent steps per second,\nwhile learning", ylim=(0, 1.1 * ax.get_ylim()[1]))
    save(figure, out, "speed")
    return True
