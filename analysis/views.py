"""The tables as they are read: headings, rounded numbers, and each interval in one cell."""

import numpy as np
import pandas as pd

from analysis.design import MARGIN

SCORE = "score"
"""the format of a return: whole from 100 on, with one decimal below, for games that are won by a few points"""


def in_points(row: dict, name: str) -> bool:
    """Whether a change is told in points: there is no share, or the share has no interval and the points have one."""
    lacks = f"{name}_points" in row and pd.isna(row[f"{name}_low"])
    return bool(lacks and (pd.notna(row[f"{name}_points_low"]) or pd.isna(row[name])))


def number(value, spec: str = SCORE, infinite: str = "never") -> str:
    if pd.isna(value):
        return "-"
    if spec == SCORE:
        spec = ",.0f" if abs(value) >= 100 else ",.1f"
    if isinstance(value, float) and np.isinf(value):
        return infinite
    return format(value, spec)


def span(row: dict, name: str, spec: str = SCORE) -> str:
    """The interval of a row's number."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{number(low, spec)} to {number(high, spec, 'more than 1,000')}" if pd.notna(low) else "-"


COLUMNS = {
    "study": ("study", ""),
    "studies": ("studies", ""),
    "game": ("game", ""),
    "arm": ("arm", ""),
    "role": ("role", ""),
    "criterion": ("criterion", ""),
    "against": ("against", ""),
    "rates": ("rates", ""),
    "seed": ("seed", ""),
    "seeds": ("seeds", ""),
    "pairs": ("pairs (seeds)", ""),
    "runs": ("runs", ""),
    "networks": ("networks", ""),
    "games": ("games", ""),
    "run": ("run", ""),
    "name": ("run", ""),
    "what": ("what", ""),
    "reason": ("reason", ""),
    "policy": ("policy", ""),
    "source": ("from", ""),
    "epsilon": ("epsilon", "g"),
    "moment": ("moment", ""),
    "distinct": ("distinct games", ""),
    "commonest_action": ("share of the commonest action", ".1%"),
    "held": ("held action", ""),
    "mean": ("mean return", ",.1f"),
    "mean~": ("95 % interval", SCORE),
    "before_prune": ("before the cut", ",.1f"),
    "after_prune": ("right after it", ",.1f"),
    "after_cut_seeds": ("seeds with a return after the cut", ""),
    "after_cut": ("return after the cut", ",.1f"),
    "after_cut~": ("95 % interval", SCORE),
    "late": ("late return", ",.1f"),
    "late~": ("95 % interval of it", SCORE),
    "final": ("final network", ",.1f"),
    "final~": ("95 % interval of that", SCORE),
    "not_above_no_skill": ("not clearly above no skill", ""),
    "dormant_conv1": ("dormant channels, conv1", ".1%"),
    "dormant_conv2": ("conv2", ".1%"),
    "dormant_conv3": ("conv3", ".1%"),
    "dormant_fc1": ("dormant units, fc1", ".1%"),
    "effective_rank": ("effective rank of fc1", ".1f"),
    "feature_norm": ("norm of the features", ",.2f"),
    "weight_norm": ("norm of the weights", ",.1f"),
    "q_mean": ("mean Q", ",.2f"),
    "q_std": ("deviation of Q", ",.2f"),
    "entropy": ("entropy, nats", ".2f"),
    "bin": ("tenth after the cut", ""),
    "program": ("program", ""),
    "quarter": ("before 25 % of the steps", ",.1f"),
    "quarter~": ("95 % interval at 25 %", SCORE),
    "half": ("before 50 %", ",.1f"),
    "half~": ("95 % interval at 50 %", SCORE),
    "change": ("change against dense", "+.1%"),
    "change~": ("95 % interval of the change", "+.1%"),
    "iqm": ("mean over seeds of the interquartile mean over games", "+.1%"),
    "iqm~": ("95 % interval", "+.1%"),
    "left_out": ("left out: returns missing or not all above 0", ""),
    "deviation": (f"deviation of arm - {1 - MARGIN:g} x dense", ".1%"),
    "deviation~": ("95 % interval", ".1%"),
    "df": ("degrees of freedom", ".0f"),
    "power": ("power with these seeds if nothing is lost", ".0%"),
    "power~": ("95 % interval of the power", ".0%"),
    "needed": ("seeds for 80 % power, at least 3", ".0f"),
    "needed~": ("95 % interval of the seeds", ".0f"),
    "level": ("level before the cut", SCORE),
    "back": ("seeds back at it", ""),
    "steps_until_back": ("agent steps until then, median", ",.0f"),
    "area": ("area lost, return x agent steps", ",.0f"),
    "area_share": ("in per cent of level x steps left", ".1%"),
    "total": ("entries", ",.0f"),
    "kept": ("entries that are left", ",.0f"),
    "zeros": ("zeros", ",.0f"),
    "emptied": ("emptied tensors", ""),
    "resident_bytes": ("bytes of the weights in memory", ",.0f"),
    "left": ("parameters left, of dense", ".1%"),
    "of_dense": ("of the dense mean", ".1%"),
    "multiply_adds_dense": ("multiply-adds", ",.0f"),
    "multiply_adds_nonzero": ("multiply-adds not by zero", ",.0f"),
    "agent_steps_per_second_while_learning": ("agent steps per second", ",.1f"),
    "agent_steps_per_second_before_cut": ("agent steps per second before the cut", ",.1f"),
    "agent_steps_per_second_after_cut": ("agent steps per second after the cut", ",.1f"),
    "peak_ram_bytes": ("peak RAM, bytes", ",.0f"),
    "peak_gpu_bytes": ("peak GPU memory, bytes", ",.0f"),
}
"""heading and format of each column; a name that ends in ~ is an interval"""
CHANGES = {
    "pairs": ("pairs with a return after the cut", ""),
    "after_cut": ("return after the cut", "+.1%"),
    "after_cut~": ("95 % interval", "+.1%"),
    "simultaneous~": ("simultaneous 95 % interval", "+.1%"),
    "after_cut_points": ("the same in points", "+,.1f"),
    "late": ("late return", "+.1%"),
    "late~": ("95 % interval of the late return", "+.1%"),
    "final": ("final network", "+.1%"),
    "final~": ("95 % interval of the final network", "+.1%"),
    "shock": ("shock (right after the last cut, against before the first)", "+.1%"),
    "shock~": ("95 % interval of the shock", "+.1%"),
}
TREND = {
    "simultaneous": ("change per 0.1 of rate", "+.1%"),
    "simultaneous~": ("simultaneous 95 % interval", "+.1%"),
    "simultaneous_points": ("the same in points", "+,.1f"),
    "simultaneous_points~": ("interval in points", "+,.1f"),
}
VIEWS = {
    "changes": "study arm role runs " + " ".join(CHANGES),
    "variants": "study arm against pairs after_cut after_cut~ simultaneous~ after_cut_points late late~ final final~",
    "returns": "study arm role seeds runs after_cut_seeds after_cut after_cut~ late late~ final final~ before_prune "
    "after_prune not_above_no_skill",
    "no_skill": "game what policy epsilon games mean mean~",
    "evaluations": "study arm moment networks mean games distinct commonest_action held not_above_no_skill",
    "noise": "study source deviation deviation~ df pairs power power~ needed needed~",
    "trend": "study criterion role rates pairs " + " ".join(TREND),
    "baseline": "study program seeds quarter quarter~ half half~ after_cut after_cut~ late late~",
    "bins": "study arm bin mean pairs change change~",
    "recovery": "study arm seeds level back steps_until_back area area_share",
    "aggregate": "studies arm games seeds iqm iqm~ left_out",
    "costs": "study arm seeds runs total kept zeros emptied disk_* resident_bytes multiply_adds_dense multiply_adds_nonzero "
    "agent_steps_per_second_while_learning agent_steps_per_second_before_cut agent_steps_per_second_after_cut "
    "peak_ram_bytes peak_gpu_bytes",
    "equal_parameters": "study left arm seeds after_cut after_cut~ of_dense disk_packed multiply_adds_dense "
    "agent_steps_per_second_after_cut",
    "health": "study arm moment seeds dormant_conv1 dormant_conv2 dormant_conv3 dormant_fc1 effective_rank feature_norm "
    "weight_norm q_mean q_std entropy",
    "runs": "study arm seed run after_cut late final before_prune after_prune games",
    "named": "what name reason",
}
"""columns of each table; disk_* are those of all formats that were measured"""


def view(name: str, rows: list[dict]) -> pd.DataFrame:
    """The table as it is read, without columns that hold no value."""
    columns = COLUMNS | {"changes": CHANGES, "variants": CHANGES, "trend": TREND}.get(name, {})
    sizes = list(dict.fromkeys(column for row in rows for column in row if column.startswith("disk_")))
    cells = {}
    for column in VIEWS[name].replace("disk_*", " ".join(sizes)).split():
        size = (f"bytes, {column.removeprefix('disk_').replace('_', ' ')}", ",.0f")
        heading, spec = columns.get(column, size)
        cells[heading] = [cell(row, column, spec) for row in rows]
    return pd.DataFrame({heading: column for heading, column in cells.items() if set(column) - {"-", ""}})


def cell(row: dict, column: str, spec: str) -> str:
    """A cell: a number or, with ~, an interval. A change that is no share is in points."""
    name, unit = column.removesuffix("~"), ""
    if in_points(row, name):
        name, spec, unit = f"{name}_points", "+,.1f", " points"
    if column.endswith("~"):
        told = span(row, name, spec)
    else:
        told = number(row.get(name), spec, "more than 1,000" if name == "needed" else "never")
    return told + unit * (told != "-")


def markdown(table: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
