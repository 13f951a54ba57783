"""The sentences of a report: the declared answer or why there is none, what else was seen, and how sure that is."""

import re
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from analysis.design import DECLARED, MARGIN, MEASURING, MIN_SEEDS, PLANNED
from analysis.no_skill import NoSkill
from analysis.studies import Study
from analysis.views import in_points, number, span
from prune_utils.run import MOMENTS


@dataclass
class Answer:
    """What the report says first of a study: in short, in one more sentence, and with the question and the reasons."""

    short: str
    measured: str
    long: str


def name_of(arm: str) -> str:
    """l1-0.5 global -> l1 at 0.5 global; none, width 0.5 -> dense with width 0.5"""
    pruned = re.fullmatch(r"(\S+?)-(\d.*)", arm)
    return f"{pruned[1]} at {pruned[2]}" if pruned else arm.replace("none, ", "dense with ").replace("none", "dense")


QUESTION = f"Does {name_of(DECLARED)} lose less than {100 * MARGIN:g} % of the return after the cut?"


def seeds_in_words(n: int) -> str:
    return f"{n} {'seed' if n == 1 else 'seeds'}"


def scaled(row: dict, name: str) -> tuple[float, float, float, str]:
    """A change and its interval: in per cent where the mean of the twins is surely above 0, else in points."""
    column, unit, scale = (f"{name}_points", "points", 1) if in_points(row, name) else (name, "%", 100)
    return *(scale * row[f"{column}{end}"] for end in ("", "_low", "_high")), unit


def change_in_words(row: dict, name: str) -> str:
    """A change and its interval."""
    middle, low, high, unit = scaled(row, name)
    if np.isnan(low):
        seeds = "in one seed" if row["pairs"] == 1 else f"in each of {row['pairs']} seeds"
        return f"{middle:+.1f} {unit} {seeds}"
    family = f"simultaneous over {row['family']} comparisons, " if row.get("family", 1) > 1 and name == "simultaneous" else ""
    return f"{middle:+.1f} {unit} (95 % interval {low:+.1f} to {high:+.1f}, {family}{seeds_in_words(row['pairs'])})"


def seen(row: dict, name: str) -> str:
    """What an interval of enough seeds shows: a loss, a gain, or how large a loss is excluded.

    A seed whose agent is stuck has no return after the cut. The others may then show a loss, but no gain, and exclude no loss.
    """
    _, low, high, unit = scaled(row, name)
    if np.isnan(low) or row["pairs"] < MIN_SEEDS:
        return ""
    if high < 0:
        return f"A loss of {-high:.1f} {unit} or more is seen"
    if row["lacking"]:
        return f"No loss is excluded: it has no return after the cut in {seeds_in_words(row['lacking'])} more"
    if low > 0:
        return f"A gain of {low:.1f} {unit} or more is seen"
    return f"A loss above {-low:.1f} {unit} is excluded, a smaller one is not"


# ----------------------------------------------------------------------------------------------------------- the answer
WITHOUT = "no game ended in a tenth of the steps after the cut, because its agent is stuck or the run is too short"


def absent(study: Study) -> str:
    """The seeds of the declared arm that are in no pair, in a sentence."""
    seeds = {run.seed for run in study.runs if run.label == DECLARED} - study.arm(DECLARED).pairs("after_cut").keys()
    return f" It has no pair in seed {', '.join(map(str, sorted(seeds)))}." if seeds else ""


def obstacles(study: Study, changes: list[dict], returns: list[dict], no_skill: NoSkill | None) -> list[str]:
    """Why the declared comparison of a study, which has a pair, has no answer; none where it has one."""
    reasons, arm = [], study.arm(DECLARED)
    pairs = len(arm.pairs("after_cut"))
    if lacking := [str(seed) for seed in arm.twins if seed not in arm.pairs("after_cut")]:
        reasons.append(f"it would leave out seed {', '.join(lacking)}: {WITHOUT}")
    if pairs < MIN_SEEDS:
        reasons.append(f"it takes {MIN_SEEDS} seeds, and there {'is' if pairs == 1 else 'are'} {pairs}")
    dense = next(row for row in returns if row["role"] == "dense")
    enough = dense["after_cut_seeds"] >= MIN_SEEDS
    if no_skill is None:
        reasons.append(f"what no skill scores in {study.first.env_id} was not measured")
    elif not dense["after_cut_low" if enough else "after_cut"] > no_skill.ceiling:
        interval = f", 95 % interval {span(dense, 'after_cut')}" if pd.notna(dense["after_cut_low"]) else ""
        floor = f"the best that no skill scores ({number(no_skill.best)}, at most {number(no_skill.ceiling)})"
        reasons.append(f"dense ({number(dense['after_cut'])}{interval}) is not clearly above {floor}")
    controls = [row for row in changes if row["role"] == "positive control" and row["pairs"] >= MIN_SEEDS]
    if pairs >= MIN_SEEDS:
        if controls and not any(scaled(row, "simultaneous")[2] < 0 for row in controls):
            told = "; ".join(f"{name_of(row['arm'])}: {change_in_words(row, 'simultaneous')}" for row in controls)
            reasons.append(f"no positive control shows a loss, so that none could be seen here ({told})")
        exploratory = [row for row in changes if row["role"] == "exploratory" and row["pairs"] >= MIN_SEEDS]
        if not controls and not any(scaled(row, "simultaneous")[2] < 0 for row in exploratory):
            told = f"no positive control has a return after the cut in {MIN_SEEDS} seeds, and no other arm shows a loss"
            reasons.append(f"{told}, so that it is unknown whether one could be seen")
    return reasons


def standing(study: Study, pairs: int) -> str:
    """What sets an answer apart from that of the planned study: fewer seeds, dense runs that are yet to come, or more seeds."""
    planned = PLANNED[study.first.algorithm]
    dense_runs = {len(twins) for twins in study.arm(DECLARED).twins.values()}
    if pairs < planned:
        return f", so far ({pairs} of {planned} planned seeds)"
    if len(dense_runs) > 1:
        return ", so far (some seeds have fewer dense and A/A runs than others)"
    return f", with {pairs} seeds where {planned} were planned" if pairs > planned else ""


def answer(study: Study, changes: list[dict], returns: list[dict], no_skill: NoSkill | None) -> Answer:
    """Whether the declared arm loses less than the margin of the return after the cut."""
    arm, margin = name_of(DECLARED), f"{100 * MARGIN:g} %"
    if not study.declares:
        options = {name: value for name, value in study.off_design.items() if name not in MEASURING}
        told = f"These runs are not the declared study ({', '.join(f'{name} {value}' for name, value in options.items())})."
        return Answer("Exploratory, no declared answer", told, told)
    row = next((row for row in changes if row["role"] == "declared" and row["pairs"]), None)
    if row is None:
        told = f"No run of {arm} has a dense twin and games in each tenth of the steps after the cut."
        told += "".join(f" {run.name}: {why}." for run, why in study.not_compared.items() if run.label == DECLARED)
        return Answer("No answer", told, f"{QUESTION} {told}")
    measured = f"Return after the cut of {arm}: {change_in_words(row, 'after_cut')}.{absent(study)}"
    if reasons := obstacles(study, changes, returns, no_skill):
        few = row["pairs"] < MIN_SEEDS
        short = f"No answer: {seeds_in_words(row['pairs'])}, {MIN_SEEDS} are needed" if few else "No answer"
        return Answer(
            short,
            measured if few else f"{reasons[0][0].upper()}{reasons[0][1:]}. {measured}",
            f"{QUESTION} There is no answer: {'; '.join(reasons)}. {measured}",
        )
    _, low, high, unit = scaled(row, "after_cut")
    stands = standing(study, row["pairs"])
    if unit != "%" or np.isnan(low):
        short = "No answer: the share of dense has no interval"
    elif low > -100 * MARGIN:
        short = f"Yes{stands}: a loss of {margin} or more is excluded"
    elif high < -100 * MARGIN:
        short = f"No{stands}: a loss of {margin} or more is seen"
    else:
        short = f"Open{stands}: a loss of {margin} or more is neither excluded nor seen"
    return Answer(short, measured, f"{QUESTION} {short}. {measured}")


# ------------------------------------------------------------------------------------------------------------ sentences
def of_setup(study: Study) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in study.off_design.items() if name != "env_id") or "none"
    return f"Setup: {study.steps:,} agent steps; options of all runs off their default: {settings}; {study.machines}."


def of_dense(row: dict) -> str:
    interval = f" (95 % interval {span(row, 'after_cut')})" if pd.notna(row["after_cut_low"]) else ""
    runs = f", {row['runs']} runs" if row["runs"] > row["seeds"] else ""
    return f"Dense: return after the cut {number(row['after_cut'])}{interval}; {seeds_in_words(row['after_cut_seeds'])}{runs}."


def of_arm(row: dict) -> str:
    """Of an arm against its twins, in the return after the cut."""
    name = "simultaneous" if row["role"] in ("exploratory", "positive control") and row["pairs"] > 1 else "after_cut"
    told = seen(row, name)
    if row["role"] == "A/A":
        return f"A/A, equal continuations that only draw other random numbers: {change_in_words(row, name)}."
    against = "" if row["against"] == "none" else f" against {name_of(row['against'])}"
    told = f" {told}." if told else ""
    return f"{row['role'].capitalize()}: {name_of(row['arm'])}{against}: {change_in_words(row, name)}.{told}"


def of_trend(row: dict) -> str:
    start = f"Exploratory, trend of {row['criterion']} over {row['rates']} per 0.1 of rate"
    told = seen(row, "simultaneous")
    return f"{start}: {change_in_words(row, 'simultaneous')}." + (f" {told}." if told else "")


def of_noise(row: dict) -> str:
    deviation, low, high = (100 * row[f"deviation{end}"] for end in ("", "_low", "_high"))
    freedom = f"{row['df']:.0f} {'degree' if row['df'] == 1 else 'degrees'} of freedom"
    needed = f"{many(row['needed'])} seeds ({many(row['needed_low'])} to {many(row['needed_high'])})"
    middle, least, most = (100 * row[f"power{end}"] for end in ("", "_low", "_high"))
    now = f" With {row['pairs']} seeds it has {middle:.0f} % ({least:.0f} to {most:.0f})." if row["pairs"] >= MIN_SEEDS else ""
    return (
        f"Noise, from {row['source']}: from seed to seed, arm - {1 - MARGIN:g} x dense has a standard deviation of "
        f"{deviation:.1f} % of dense (95 % interval {low:.1f} to {high:.1f}, {freedom}). "
        f"For 80 % power where nothing is lost, a test of {name_of(DECLARED)} needs {needed}.{now}"
    )


def of_aggregate(row: dict) -> str:
    middle, low, high = (100 * row[f"iqm{end}"] for end in ("", "_low", "_high"))
    interval = f"95 % interval {low:+.1f} to {high:+.1f}, {seeds_in_words(row['seeds'])} of {row['games']} games"
    without = f", without {row['left_out']}, where returns are missing or not all above 0" if row["left_out"] else ""
    mean = "the interquartile mean over games of each seed" if row["games"] > 3 else "the mean over games of each seed"
    return f"Exploratory: {name_of(row['arm'])}: {middle:+.1f} % ({interval}), {mean}{without}."


def many(seeds: float) -> str:
    return "more than 1,000" if np.isinf(seeds) else f"{seeds:.0f}"


def of_equal_parameters(rows: list[dict]) -> str:
    """Of arms that leave as many parameters."""
    arms = []
    for row in rows:
        share = "" if np.isnan(row["of_dense"]) else f"{100 * row['of_dense']:.0f} % of dense, "
        arms.append(f"{name_of(row['arm'])}: {number(row['after_cut'])} ({share}{seeds_in_words(row['seeds'])})")
    size = 100 * np.mean([row["left"] for row in rows])
    return f"Exploratory: return after the cut of arms that leave {size:.0f} % of the parameters: {'; '.join(arms)}."


def of_no_skill(returns: list[dict], evaluations: list[dict]) -> list[str]:
    """Of returns and evaluations that show no skill."""
    low = [f"{name_of(row['arm'])} ({row['not_above_no_skill']})" for row in returns if row["not_above_no_skill"]]
    held = [f"{name_of(row['arm'])} {MOMENTS[row['moment']]} ({row['held']})" for row in evaluations if row["held"]]
    told = [f"Returns that are not clearly above no skill: {'; '.join(low)}."] if low else []
    return told + ([f"Evaluations that are, or may be, of held actions: {'; '.join(held)}."] if held else [])


def sentences(study: Study, answer: Answer, tables: dict[str, list[dict]], no_skill: NoSkill | None) -> list[str]:
    """All sentences of a study, the declared comparison first."""
    told = [answer.long, *([no_skill.in_words] if no_skill else [])]
    told += [of_dense(row) for row in tables["returns"] if row["role"] == "dense" and "after_cut" in row]
    without = []
    for arm in study.arms:
        lacking = [run for run in arm.all_runs if np.isnan(run.value("after_cut")) and arm.kind != "A/A"]
        runs = [f"fork {run.fork_seed} of " * (run.fork_seed is not None) + f"seed {run.seed}" for run in lacking]
        without += [f"{name_of(arm.label)} ({', '.join(runs)})"] if runs else []
    if without:
        after = any(run.summary["global_step"] > run.cut_step for run in study.arm_runs)
        told.append(f"No return after the cut of {'; '.join(without)}: {WITHOUT if after else 'no steps come after it'}.")
    compared = [row for row in tables["changes"] if row["pairs"]]
    for role in ("A/A", "positive control", "exploratory"):
        told += [of_arm(row) for row in compared if row["role"] == role]
    variants = [row for row in tables["variants"] if row["pairs"]]
    told += [of_arm(row) for row in variants]
    told += [of_trend(row) for row in tables["trend"]]
    told += [of_equal_parameters(list(rows)) for _, rows in groupby(tables["equal_parameters"], lambda row: row["size"])]
    told += [of_noise(row) for row in tables["noise"]]
    told += of_no_skill(tables["returns"], tables["evaluations"])
    if any(row["pairs"] == 1 for row in compared + variants):
        told.append(
            "An arm with one seed has no interval: how far seeds differ is unknown, so it excludes neither a loss nor a gain."
        )
    return [*told, of_setup(study)]
