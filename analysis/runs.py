"""Run folders, read and checked: what each run is, what a finished one measured, and why one cannot be used."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis import paired
from analysis.design import BINS, DESIGN, MEASURING
from prune_utils.basics import UserError
from prune_utils.run import CRITERIA, NEUTRAL, OF_THE_CUT, arm

RUN_FILES = ("config.json", "summary.json", "eval.csv", "curves.csv", "curves.csv.gz", "prune_point.pt")
BEGUN = (".lock", "config.json.part")
"""what a run leaves that was killed before its first file was whole"""
OF_THE_MACHINE = {"cuda", "torch_deterministic"}
"""options that may differ between the seeds of a study"""
MOMENTS = ("before_prune", "after_prune", "final")
GAMES = ["moment", "episode", "seed", "return", "length", "truncated"]
"""columns of eval.csv that are read"""
CURVES = ("charts/episodic_return", "prune/sparsity", "losses/", "health/")
"""beginnings of the tags that are read"""
MAY_BE_UNDEFINED = "losses/explained_variance"
"""it is nan or -inf in a rollout whose returns are all the same"""
OPTIONS = {"env_id": (str,), "seed": (int,), "total_timesteps": (int,), "prune_type": (str,), "prune_rate": (float, int)}
"""options that say what a run is, and their types; they are never assumed"""
HEADS = ("fc2", "actor", "critic")
"""output layers of both algorithms"""
RESOLVED = ("device", "precision", "num_threads", "torch", "source_sha256")
SUMMARY = {
    "global_step": int,
    "total": int,
    "pruned": int,
    "nonzero": int,
    "resident_bytes": int,
    "sparsity": float,
    "emptied": list,
    "tensors": dict,
    "disk": dict,
    "time": dict,
}


class Broken(Exception):
    """A run folder with a file that is missing or says something else than it should."""


class Named(NamedTuple):
    """A run, or a gap where one should be, that the report does not use as it uses the others.

    what: unfinished, failed, broken, unknown, empty, missing, not compared, not evaluated, other machine or counted once.
    """

    what: str
    name: str
    reason: str


@dataclass(eq=False)
class Run:
    """A run folder. A finished run also has what its files hold and what is computed from them.

    - games: what eval.csv holds, as text
    - scores: mean return at each moment
    - past: the rows of curves.csv before the cut
    - bins, bins_before: mean training return in equal bins of the steps after the cut, and in as many before it
    """

    folder: Path
    config: dict
    finished: bool = False
    summary: dict = field(default_factory=dict)
    games: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=GAMES))
    scores: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    past: list[str] = field(default_factory=list)
    cut_step: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.full(BINS, np.nan))
    bins_before: np.ndarray = field(default_factory=lambda: np.full(BINS, np.nan))
    recovery: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.algorithm, self.device_name = self.config["algorithm"], self.config["device_name"]
        self.options = DESIGN[self.algorithm] | self.config["options"]
        self.shaping = self.options | self.config["resolved"]  # what has to agree for a pair
        self.identity = arm(self.algorithm, self.options)
        self.env_id, self.seed = self.identity["env_id"], self.identity["seed"]
        self.rate, self.kind = self.identity["effective_prune_rate"], self.identity["prune_type"]
        suffix = ""
        if self.kind != "none":
            suffix += "" if self.options["prune_scope"] == "layer" else f" {self.options['prune_scope']}"
            suffix += "" if self.options["prune_bias"] else " without biases"
            suffix += "" if self.options["prune_head"] else " without output layers"
            if self.options["prune_cuts"] > 1:
                suffix = f" in {self.options['prune_cuts']} cuts until {self.options['prune_until']:g}{suffix}"
        plain = arm(self.algorithm, self.options | {"fork_seed": None, "prune_cuts": 1})["arm"]  # forks are of one arm
        self.label, self.criterion = plain + suffix, self.kind + suffix

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def fork_seed(self) -> int | None:
        return self.options["fork_seed"]

    @property
    def machine(self) -> dict:
        return {"device_name": self.device_name} | self.config.get("versions", {})

    def value(self, quantity: str) -> float:
        """One of the quantities of the design, or the score of a moment."""
        if quantity == "after_cut":
            return float(self.bins.mean())
        return float(self.bins[-1]) if quantity == "late" else self.scores.get(quantity, np.nan)

    def games_of(self, moment: str) -> pd.DataFrame:
        return self.games[self.games.moment == moment]

    def commonest_action(self, moment: str) -> float:
        """The share of the commonest action in the evaluation of a moment; nan where it was not recorded."""
        share = self.summary.get("eval", {}).get(moment, {}).get("commonest_action_share")
        return np.nan if share is None else share

    def health(self, moment: str) -> dict[str, float]:
        """What a moment showed inside the network; empty where it was not recorded."""
        return self.summary.get("eval", {}).get(moment, {}).get("health", {})

    def design(self, ignored: tuple[str, ...] = ()) -> dict:
        """The options that seeds and arms of a study share. Those of the machine are compared within pairs only."""
        others = NEUTRAL | OF_THE_CUT | OF_THE_MACHINE | {"seed", *self.config["resolved"], *ignored}
        return {name: value for name, value in self.options.items() if name not in others and value is not None}

    def study_key(self, ignored: tuple[str, ...] = ()) -> str:
        design = self.design((*ignored, *MEASURING))
        design = {name: float(value) if type(value) is int else value for name, value in design.items()}
        return json.dumps({"algorithm": self.algorithm} | design, sort_keys=True)  # 1 and 1.0 are one value


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a torn or strange file makes its reader raise into Broken."""
    try:
        yield
    except FileNotFoundError:
        raise Broken(f"{name} is missing") from None
    except Broken:
        raise
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise Broken(f"{name} cannot be read ({type(error).__name__}: {message})") from None


def ensure(holds: bool, reason: str) -> None:
    if not holds:
        raise Broken(reason)


def find(folder: Path) -> Iterator[Path]:
    """Run folders in a folder, itself included, and folders that hold nothing. W&B's and hidden ones are skipped."""
    entries = sorted(folder.iterdir())
    is_run = any((folder / name).is_file() for name in RUN_FILES)
    if is_run or all(entry.name in BEGUN for entry in entries):
        yield folder
    if (folder / "config.json").is_file():
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "wandb":
            yield from find(entry)


def last_log_line(folder: Path) -> str:
    """The last line of the log that a sweep wrote of a run."""
    log = folder.parent / f"{folder.name}.log"
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_curves(folder: Path) -> pd.DataFrame:
    file = folder / "curves.csv"
    with reading("curves.csv"):
        file = file if file.is_file() else folder / "curves.csv.gz"
        return pd.read_csv(file, dtype={"global_step": "int64", "tag": "category", "value": "float64"})


def read_run(folder: Path) -> Run | Named:
    """A run, or why there is none. An unfinished or broken one has only what its config says."""
    if not any((folder / name).is_file() for name in RUN_FILES):
        return Named("empty", folder.name, "the folder holds no run")
    try:
        with reading("config.json"):
            ensure((folder / "config.json").is_file(), "config.json is missing: its options are not known")
            config = json.loads((folder / "config.json").read_text())
            algorithm, options, resolved = config["algorithm"], config["options"], config["resolved"]
            for name, types in OPTIONS.items():
                ensure(name in options, f"config.json has no option {name}")
                ensure(type(options[name]) in types, f"config.json has the {name} {options[name]!r}")
            for name in RESOLVED:
                ensure(name in resolved, f"config.json has no resolved {name}")
            fork_seed = options.get("fork_seed")  # older ones have none, and no versions either
            ensure(fork_seed is None or type(fork_seed) is int, f"config.json has the fork_seed {fork_seed!r}")
            versions = config.get("versions", {})
            ensure(isinstance(versions, dict), f"config.json has the versions {versions!r}")
            if algorithm not in DESIGN:
                return Named("unknown", folder.name, f"the analysis knows no algorithm {algorithm}")
            if options["prune_type"] not in ("none", *CRITERIA):
                return Named("unknown", folder.name, f"the analysis knows no prune_type {options['prune_type']}")
            run = Run(folder, config)
    except Broken as broken:
        return Named("broken", folder.name, str(broken))
    run.finished = (folder / "summary.json").is_file()
    return run


def check_pruning(run: Run) -> None:
    """Raise Broken unless the summary counts the pruned entries that the options ask for, and at least as many zeros."""
    tensors = run.summary["tensors"]
    total, of_tensors = run.summary["total"], sum(count["total"] for count in tensors.values())
    ensure(total == of_tensors, f"summary.json has {total:,} entries, and its tensors {of_tensors:,}")
    ensure(set(run.summary["emptied"]) <= set(tensors), f"summary.json has emptied {run.summary['emptied']!r}")
    if run.kind.endswith("-structured"):  # the rate is of units, which biases count; heads lose none
        for name, count in tensors.items():
            units, gone = count["total"], count["pruned"]
            expected = 0 if name.split(".")[0] in HEADS else min(round(run.rate * units), units - 1)
            fits = not name.endswith(".bias") or gone == expected
            ensure(fits, f"summary.json has {gone} units gone from {name}, where {run.label} removes {expected}")
        return
    prunable = {name: count for name, count in tensors.items() if run.options["prune_bias"] or name.endswith(".weight")}
    if not run.options["prune_head"]:
        prunable = {name: count for name, count in prunable.items() if name.split(".")[0] not in HEADS}
    entries, pruned = (sum(count[key] for count in of.values()) for of, key in ((prunable, "total"), (tensors, "pruned")))
    expected = run.rate * entries
    far = abs(pruned - expected) > len(tensors) / 2  # each tensor is rounded on its own
    ensure(not far, f"summary.json has {pruned:,} pruned entries, where {run.label} removes {expected:,.0f}")
    zeros = total - run.summary["nonzero"]
    ensure(zeros >= pruned, f"summary.json has {zeros:,} zeros at the end, where the cut removed {pruned:,}")


def read_results(run: Run, window: int) -> None:
    """Read what a finished run left, and check that the files agree with each other."""
    with reading("summary.json"):
        run.summary = summary = json.loads((run.folder / "summary.json").read_text())
        for name, value in run.identity.items():
            ensure(summary[name] == value, f"summary.json has {name} {summary[name]}, config.json {value}")
        moments = {moment: (score["n"], score["mean"]) for moment, score in summary.get("eval", {}).items()}
        for name, kind in SUMMARY.items():
            ensure(isinstance(summary[name], kind), f"summary.json has {name} {summary[name]!r}")
        sizes = [summary["disk"]["dense"], *summary["disk"].values()]
        ensure(all(isinstance(size, int) for size in sizes), f"summary.json has disk {summary['disk']!r}")
        numbers = summary["time"] | summary.get("multiply_adds", {})
        numbers |= {f"{m} commonest_action_share": run.commonest_action(m) for m in moments}
        numbers |= {f"{m} health {name}": value for m in moments for name, value in run.health(m).items()}
        for name, value in numbers.items():
            ensure(value is None or type(value) in (int, float), f"summary.json has {name} {value!r}")
        check_pruning(run)
    if moments:
        with reading("eval.csv"):
            run.games = pd.read_csv(run.folder / "eval.csv", dtype=str, usecols=GAMES)
            ensure(not run.games.isna().any(axis=None), "eval.csv has an empty cell")
            for moment, returns in run.games["return"].astype(float).groupby(run.games.moment):
                run.scores[moment] = float(returns.mean())
            for moment, (n, mean) in moments.items():
                games = len(run.games_of(moment))
                ensure(games == n, f"eval.csv has {games} games {moment}, summary.json {n}")
                agree = np.isclose(run.scores[moment], mean)
                ensure(agree, f"eval.csv has a mean of {run.scores[moment]:g} {moment}, summary.json {mean:g}")
    rows = read_curves(run.folder)
    with reading("curves.csv"):
        whole = len(rows) and str(rows.tag.iloc[-1]).startswith("disk/") and rows.value.notna().iloc[-1]
        ensure(bool(whole), "curves.csv ends before the run did")
        for tag in rows.tag.cat.categories:
            if tag.startswith(CURVES):
                of_tag = rows[rows.tag == tag]
                run.curves[tag] = of_tag.global_step.to_numpy(), of_tag.value.to_numpy()
                for step, _, value in of_tag[~np.isfinite(of_tag.value)].itertuples(index=False):
                    ensure(tag == MAY_BE_UNDEFINED, f"curves.csv has {tag} {value:g} at step {step:,}")
        ensure("prune/sparsity" in run.curves, "curves.csv has no row prune/sparsity, which tells the step of the cut")
        past = rows.iloc[: int((rows.tag == "prune/sparsity").argmax())]
        past = past[~past.tag.str.startswith("health/")]  # fp32 sums, whose last bits another CPU may round otherwise
        run.past = [f"{step} {tag} {value}" for step, tag, value in past.itertuples(index=False)]
        run.cut_step = int(run.curves["prune/sparsity"][0][0])
        steps, returns = run.curves.get("charts/episodic_return", (np.zeros(0, int), np.zeros(0)))
        run.bins = paired.binned(steps, returns, run.cut_step, summary["global_step"], BINS)
        run.bins_before = paired.binned(steps, returns, 0, run.cut_step, BINS)
        run.recovery = paired.recovery(steps, returns, run.cut_step, window)


def collect(places: tuple[Path, ...], window: int) -> tuple[list[Run], list[Named]]:
    """Every run under the given folders, the finished ones read and checked, and whatever is no such run."""
    folders: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"RUNS must be folders that exist, got {place}")
        folders |= {folder.resolve(): folder for folder in find(place)}
    runs, named = [], []
    for folder in folders.values():
        run = read_run(folder)
        if isinstance(run, Named):
            named.append(run)
            continue
        runs.append(run)
        if not run.finished:
            named.append(unfinished(run))
            continue
        try:
            read_results(run, window)
        except Broken as broken:
            run.finished = False
            named.append(Named("broken", run.name, str(broken)))
        else:
            if not run.scores:
                reason = "it played no evaluation games, so it has training returns only"
                named.append(Named("not evaluated", run.name, reason))
    for parent in sorted({folder.parent for folder in folders.values() if folder not in places} | set(places)):
        for log in sorted(parent.glob("*__s*.log")):
            if not log.with_suffix("").is_dir():
                reason = f"it left no run folder; its log ends: {last_log_line(log.with_suffix(''))}"
                named.append(Named("failed", log.stem, reason))
    return runs, named


def unfinished(run: Run) -> Named:
    """How far a run without a summary came, and the last line of its log."""
    last_line, total = last_log_line(run.folder), run.options["total_timesteps"]
    try:
        rows = read_curves(run.folder).dropna()
        reached = f"at agent step {rows.global_step.iloc[-1]:,} of {total:,}" if len(rows) else "before its first logged step"
    except Broken:
        reached = "at a step that its curves do not tell"
    what = "failed" if re.match(r"error\b|[\w.]*(Error|Exception)\b|Killed", last_line) else "unfinished"
    return Named(what, run.name, f"no summary.json, {reached}" + (f"; its log ends: {last_line}" if last_line else ""))
