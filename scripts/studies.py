"""Run folders as studies: what can be compared with what, what is named instead, and the numbers of each arm.

A study is one algorithm, game and set of options; its arms are compared with the dense run of the same seed, their twin.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

import dqn_atari_prune
import ppo_atari_prune
from ppo_atari_prune import NEUTRAL, OF_THE_CUT, UserError, differences
from scripts import paired

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
DECLARED = "l1-0.5"
"""the one contrast an algorithm that is declared in advance"""
CONTROLS = 0.9
"""from this rate on an arm is a positive control, which shows that a loss can be seen, and no part of a trend"""
RUN_FILES = ("config.json", "summary.json", "eval.csv", "curves.csv", "curves.csv.gz", "prune_point.pt")
CURVES = ("charts/episodic_return", "prune/sparsity", "losses/")
MOMENTS = ("before_prune", "after_prune", "final")
SUMMARY = dict.fromkeys(("global_step", "total", "nonzero", "resident_bytes"), int)
SUMMARY |= {"sparsity": float, "emptied": list, "tensors": dict, "disk": dict, "time": dict}


# --------------------------------------------------------------------------------------------------------------- reading
class Broken(Exception):
    """A run folder with a file that is missing or says something else than it should."""


class Named(NamedTuple):
    """A run, or a gap where one should be, that the report does not use as it uses the others."""

    what: Literal["unfinished", "failed", "broken", "empty", "missing", "not compared", "counted once"]
    name: str
    reason: str


@dataclass(eq=False)
class Run:
    """A run folder; `finished` ones have a summary, scores (a mean return a moment), curves and recovery too."""

    folder: Path
    config: dict
    finished: bool = False
    summary: dict = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    games: dict[str, int] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    recovery: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        options = SimpleNamespace(**self.config["options"])
        told = SCRIPTS[self.config["algorithm"]].arm(options)
        self.shaping = self.config["options"] | self.config["resolved"]  # what has to agree for a pair
        self.total_timesteps = options.total_timesteps
        self.algorithm, self.env_id, self.seed = told["algorithm"], told["env_id"], told["seed"]
        self.device_name = self.config["device_name"]
        self.rate, self.kind = told["effective_prune_rate"], told["prune_type"]
        self.told = told
        others = " global" * (options.prune_scope == "global") + " without biases" * (not options.prune_bias)
        suffix = others if self.rate or self.kind != "none" else ""
        self.label = told["arm"] + suffix
        self.criterion = self.kind + ("" if options.fork_seed is None else f" fork {options.fork_seed}") + suffix
        if self.kind == "none" and options.fork_seed is not None:
            self.kind = self.criterion = "A/A"

    @property
    def name(self) -> str:
        return self.folder.name

    def study_key(self, but: tuple[str, ...] = ()) -> str:
        """The options that seeds and arms of a study share; what differs between machines is asked of pairs only."""
        left_out = NEUTRAL | OF_THE_CUT | {"seed", *self.config["resolved"], *but}
        kept = {k: v for k, v in self.config["options"].items() if k not in left_out and v is not None}
        return json.dumps({"algorithm": self.algorithm} | kept, sort_keys=True)


@contextmanager
def reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Broken(f"{name} is missing") from None
    except Broken:
        raise
    except Exception as error:  # whatever a torn or strange file makes the readers say
        said = (str(error).splitlines() or [""])[0]
        raise Broken(f"{name} cannot be read ({type(error).__name__}: {said})") from None


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def find(folder: Path) -> Iterator[Path]:
    """Run folders in a folder, itself included, and folders that hold nothing; W&B's and hidden ones are passed over."""
    entries = sorted(folder.iterdir())
    children = [p for p in entries if p.is_dir() and not p.name.startswith(".") and p.name != "wandb"]
    is_run = any((folder / name).is_file() for name in RUN_FILES)
    if is_run or all(p.name in (".lock", "config.json.part") for p in entries):
        yield folder
        return
    for child in children:
        yield from find(child)


def last_words(folder: Path) -> str:
    """The last line that a sweep kept of what a run said."""
    log = folder.parent / f"{folder.name}.log"
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_curves(folder: Path) -> pd.DataFrame:
    file = folder / "curves.csv"
    with reading("curves.csv"):
        file = file if file.is_file() else folder / "curves.csv.gz"
        return pd.read_csv(file, dtype={"global_step": "int64", "tag": "category", "value": "float64"})


def read_run(folder: Path) -> Run | Named:
    """A run, or why there is none; of an unfinished or broken one as much as its config tells."""
    if not any((folder / name).is_file() for name in RUN_FILES):
        return Named("empty", folder.name, "the folder holds no run")
    try:
        with reading("config.json"):
            check((folder / "config.json").is_file(), "config.json is missing: its options are not known")
            config = json.loads((folder / "config.json").read_text())
            for option in fields(SCRIPTS[config["algorithm"]].Args):
                check(option.name in config["options"], f"config.json has no option {option.name}")
            check(type(config["options"]["seed"]) is int, f"config.json has the seed {config['options']['seed']!r}")
            run = Run(folder, config)
    except Broken as broken:
        return Named("broken", folder.name, str(broken))
    run.finished = (folder / "summary.json").is_file()
    return run


def fill(run: Run, window: int) -> None:
    """Read what a finished run left, and check that the files agree with each other."""
    folder = run.folder
    with reading("summary.json"):
        run.summary = json.loads((folder / "summary.json").read_text())
        for key, value in run.told.items():
            check(run.summary[key] == value, f"summary.json has {key} {run.summary[key]}, config.json {value}")
        moments = {moment: (score["n"], score["mean"]) for moment, score in run.summary.get("eval", {}).items()}
        for key, kind in SUMMARY.items():
            check(isinstance(run.summary[key], kind), f"summary.json has {key} {run.summary[key]!r}")
        sizes = [run.summary["disk"]["dense"], *run.summary["disk"].values()]
        check(all(isinstance(size, int) for size in sizes), f"summary.json has disk {run.summary['disk']!r}")
    if moments:
        with reading("eval.csv"):
            for moment, returns in pd.read_csv(folder / "eval.csv").groupby("moment")["return"]:
                run.games[moment], run.scores[moment] = len(returns), float(returns.mean())
            for moment, (n, mean) in moments.items():
                found = run.games.get(moment, 0)
                check(found == n, f"eval.csv has {found} games {moment}, summary.json {n}")
                agree = np.isclose(run.scores[moment], mean)
                check(agree, f"eval.csv has a mean of {run.scores[moment]:g} {moment}, summary.json {mean:g}")
    rows = read_curves(folder)
    with reading("curves.csv"):
        whole = len(rows) and str(rows.tag.iloc[-1]).startswith("disk/") and rows.value.notna().iloc[-1]
        check(bool(whole), "curves.csv ends before the run did")
        for tag in rows.tag.cat.categories:
            if tag.startswith(CURVES):
                found = rows[rows.tag == tag]
                run.curves[tag] = found.global_step.to_numpy(), found.value.to_numpy()
        steps, returns = run.curves.get("charts/episodic_return", (np.zeros(0, int), np.zeros(0)))
        run.recovery = paired.recovery(steps, returns, cut_step(run), window)


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
            fill(run, window)
        except Broken as broken:
            run.finished = False
            named.append(Named("broken", run.name, str(broken)))
        else:
            if not run.scores:
                named.append(Named("not compared", run.name, "it played no evaluation games"))
    for parent in sorted({folder.parent for folder in folders.values() if folder not in places} | set(places)):
        for log in sorted(parent.glob("*__s*.log")):
            if not log.with_suffix("").is_dir():
                reason = f"it left no run folder; its log ends: {last_words(log.with_suffix(''))}"
                named.append(Named("failed", log.stem, reason))
    return runs, named


def cut_step(run: Run) -> int:
    return int(run.curves["prune/sparsity"][0][0])


def unfinished(run: Run) -> Named:
    """How far a run without a summary came, and what it said last."""
    said, of = last_words(run.folder), run.total_timesteps
    try:
        rows = read_curves(run.folder).dropna()
        at = f"at agent step {rows.global_step.iloc[-1]:,} of {of:,}" if len(rows) else "before its first logged step"
    except Broken:
        at = "at a step that its curves do not tell"
    what = "failed" if re.match(r"error\b|[\w.]*(Error|Exception)\b|Killed", said) else "unfinished"
    return Named(what, run.name, f"no summary.json, {at}" + f"; its log ends: {said}" * bool(said))


# --------------------------------------------------------------------------------------------------------------- studies
@dataclass(eq=False)
class Arm:
    """Runs of one arm by seed, and those of them that have a dense twin that they can be compared with."""

    label: str
    criterion: str
    kind: str
    rate: float
    runs: dict[int, Run]
    pairs: list[tuple[Run, Run]] = field(default_factory=list)

    def values(self, measure: Callable[[Run], float | None]) -> np.ndarray:
        """A number a seed, of the runs that have it."""
        found = [measure(run) for run in self.runs.values()]
        return np.array([value for value in found if value is not None and not np.isnan(value)], float)

    def paired_values(self, measure: Callable[[Run], float | None]) -> tuple[np.ndarray, np.ndarray]:
        """A number a seed of this arm, and of its dense twin."""
        found = np.array([[measure(run), measure(twin)] for run, twin in self.pairs], float).reshape(-1, 2)
        return tuple(found[~np.isnan(found).any(axis=1)].T)

    def scores(self, moment: str) -> np.ndarray:
        return self.values(lambda run: run.scores.get(moment))

    def paired_scores(self, moment: str) -> tuple[np.ndarray, np.ndarray]:
        return self.paired_values(lambda run: run.scores.get(moment))


@dataclass(eq=False)
class Study:
    """The runs of one algorithm, game and set of options, as arms: dense first, then its kin, then each criterion by rate."""

    runs: list[Run]
    arms: list[Arm] = field(default_factory=list)
    label: str = ""
    declares: bool = False

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def slug(self) -> str:
        """Its label as a part of a file's name, which may not be long."""
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")
        return plain if len(plain) <= 80 else f"{plain[:80]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"

    @property
    def dense(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.kind == "none"), None)

    def by_criterion(self) -> dict[str, list[Arm]]:
        """For each criterion the dense arm and its own, by rate; where nothing is pruned, the dense arm alone."""
        dense = [arm for arm in self.arms if arm.kind == "none"]
        criteria = dict.fromkeys(arm.criterion for arm in self.arms if arm.rate) or {"none": None}
        return {name: dense + [arm for arm in self.arms if arm.rate and arm.criterion == name] for name in criteria}

    @property
    def steps(self) -> int:
        return max(run.summary["global_step"] for arm in self.arms for run in arm.runs.values())

    @property
    def cuts(self) -> set[int]:
        return {cut_step(run) for arm in self.arms for run in arm.runs.values()}

    @property
    def off_default(self) -> dict:
        """Options of all its runs that are not at the script's default."""
        shared = json.loads(self.first.study_key())
        defaults = {f.name: f.default for f in fields(SCRIPTS[self.first.algorithm].Args)}
        return {name: value for name, value in shared.items() if name in defaults and value != defaults[name]}

    @property
    def machines(self) -> str:
        """What its finished runs computed in and on, and with which of several script texts; the seeds, where these differ."""
        runs = [run for arm in self.arms for run in arm.runs.values()]
        texts, seeds = {run.shaping["source_sha256"] for run in runs}, {}
        for run in runs:
            precision, threads, torch, text = (run.shaping[k] for k in ("precision", "num_threads", "torch", "source_sha256"))
            told = f"{precision} on {run.device_name}, threads {threads}, torch {torch}"
            seeds.setdefault(told + f", script {text[:8]}" * (len(texts) > 1), set()).add(run.seed)
        each = [told + f" (seeds {', '.join(map(str, sorted(own)))})" * (len(seeds) > 1) for told, own in seeds.items()]
        return "; ".join(each)


def group(runs: list[Run]) -> list[Study]:
    """Studies; dense networks of another width that were run beside one become an arm of it."""
    studies: dict[str, Study] = {}
    for run in runs:
        studies.setdefault(run.study_key(), Study([])).runs.append(run)
    for key, study in list(studies.items()):
        narrow = [s for s in studies.values() if s is not study and any(r.rate for r in s.runs)]
        hosts = [s for s in narrow if s.first.study_key(("hidden_size",)) == study.first.study_key(("hidden_size",))]
        if hosts and all(run.kind == "none" for run in study.runs):
            for run in study.runs:
                run.kind, run.label = "small", f"none, hidden_size {run.config['options']['hidden_size']}"
                run.criterion = run.label
            hosts[0].runs += study.runs
            del studies[key]
    return sorted(studies.values(), key=lambda s: (s.first.algorithm, s.first.env_id, s.first.study_key()))


def build(study: Study, everything: list[Run], named: list[Named]) -> None:
    """Make the arms of a study and their pairs; name the runs that cannot be paired and the gaps."""
    order = {"none": 0, "A/A": 1, "small": 2, "l1": 3, "random": 4}
    cells: dict[tuple, list[Run]] = {}
    for run in sorted(study.runs, key=lambda r: (order[r.kind], r.criterion, r.rate, r.label, r.seed)):
        cells.setdefault((run.label, run.seed), []).append(run)
    arms: dict[str, Arm] = {}
    for (label, seed), found in cells.items():
        done = [run for run in found if run.finished]
        beside = [run for run in study.runs if run.seed == seed and run.finished]
        done.sort(key=lambda run: -sum(not apart(run, other) for other in beside))  # the one that most others can pair with
        for run in done[1:]:
            named.append(Named("counted once", str(run.folder), f"{label} of seed {seed} is there as {done[0].folder}"))
        if done:
            run = done[0]
            arms.setdefault(label, Arm(label, run.criterion, run.kind, run.rate, {})).runs[seed] = run
    study.arms = list(arms.values())
    twins = study.dense.runs if study.dense else {}
    for arm in study.arms:
        for seed, run in arm.runs.items():
            if arm.kind in ("none", "small"):
                continue
            if seed in twins and not apart(twins[seed], run):
                arm.pairs.append((run, twins[seed]))
                continue
            same = (run.algorithm, run.env_id, seed, "none")
            others = [r for r in everything if r.finished and (r.algorithm, r.env_id, r.seed, r.kind) == same]
            reason = f"there is no finished dense run of seed {seed}"
            if others:
                twin = twins.get(seed) or min(others, key=lambda other, run=run: len(apart(other, run)))
                reason = f"it differs from the dense run {twin.name}: {apart(twin, run)}"
            named.append(Named("not compared", run.name, reason))
    labels, seeds = dict.fromkeys(label for label, _ in cells), sorted({seed for _, seed in cells})
    for label in labels:
        if gaps := [str(seed) for seed in seeds if (label, seed) not in cells]:
            there = f"seeds {', '.join(map(str, seeds))} are in the study"
            named.append(Named("missing", f"{study.label}, {label}", f"no run of seed {', '.join(gaps)}; {there}"))


def apart(dense: Run, run: Run) -> str:
    """What differs between two runs apart from the cut; hashes are cut short."""
    told = differences(dense.shaping, run.shaping, NEUTRAL | OF_THE_CUT)
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", told)


def label_studies(studies: list[Study]) -> None:
    """Algorithm and game, then the options in which studies of one report differ; and which study declares its contrast."""
    for study in studies:
        kin = [json.loads(s.first.study_key()) for s in studies if s.first.algorithm == study.first.algorithm]
        mine = json.loads(study.first.study_key())
        told = [f"{k} {v}" for k, v in mine.items() if k != "env_id" and any(other.get(k) != v for other in kin)]
        study.label = ", ".join([study.first.algorithm.upper(), study.first.env_id, *told])
    for algorithm in SCRIPTS:
        own = [s for s in studies if s.first.algorithm == algorithm and any(run.label == DECLARED for run in s.runs)]
        if own:
            min(own, key=lambda s: len(s.off_default)).declares = True


# ---------------------------------------------------------------------------------------------------------------- tables
def role(study: Study, arm: Arm) -> str:
    kinds = {"none": "dense", "A/A": "A/A", "small": "control"}
    if arm.rate >= CONTROLS:
        return "positive control"
    return kinds.get(arm.kind) or ("declared" if study.declares and arm.label == DECLARED else "exploratory")


def interval(prefix: str, found) -> dict[str, float]:
    return dict(zip((prefix, f"{prefix}_low", f"{prefix}_high"), map(float, found), strict=True))


def against_twin(arm: Arm, measure: Callable[[Run], float | None]) -> dict:
    """Paired difference to the dense twins, in the unit of the measure and as a share of their mean."""
    scores, dense = arm.paired_values(measure)
    if not len(scores):
        return {"pairs": 0}
    row = {"pairs": len(scores)} | interval("difference", paired.t_interval(scores - dense))
    row["difference_std"] = float(np.std(scores - dense, ddof=1)) if len(scores) > 1 else np.nan
    return row | interval("change", paired.ratio_interval(scores - dense, dense))


def returns_table(study: Study) -> list[dict]:
    rows = []
    for arm in study.arms:
        games = sorted({run.games["final"] for run in arm.runs.values() if "final" in run.games})
        final = arm.scores("final")
        row = {"study": study.label, "arm": arm.label, "role": role(study, arm), "rate": arm.rate, "seeds": len(final)}
        row |= {"games": "-".join(map(str, dict.fromkeys([*games[:1], *games[-1:]])))}
        row |= {moment: float(np.mean(found)) for moment in MOMENTS if len(found := arm.scores(moment))}
        if len(final):
            row |= interval("final", paired.t_interval(final))
            row["std"] = float(np.std(final, ddof=1)) if len(final) > 1 else np.nan
        row |= against_twin(arm, lambda run: run.scores.get("final"))
        scores, dense = arm.paired_scores("final")
        if len(scores) and arm.kind in ("l1", "random"):
            row["detectable"] = float(paired.detectable(scores - dense))
            row["detectable_change"] = row["detectable"] / dense.mean() if dense.mean() > 0 else np.nan
            row["p"] = float(paired.p_value(scores - dense))
            judged = row["role"] == "declared" and not np.isnan(row["change_low"])  # a share of what is surely above 0
            row["p_not_worse"] = float(paired.p_not_worse(scores, dense, paired.MARGIN)) if judged else np.nan
        rows.append(row)
    for row, p in zip(rows, paired.holm([row.get("p", np.nan) for row in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def recovery_table(study: Study) -> list[dict]:
    rows = []
    for arm in study.arms:
        back = arm.values(lambda run: run.recovery["back"])
        row = {"study": study.label, "arm": arm.label, "seeds": len(arm.runs), "judged": len(back)}
        if len(back):
            judged = [run for run in arm.runs.values() if not np.isnan(run.recovery["level"])]
            left = [run.summary["global_step"] - cut_step(run) for run in judged]
            level, area = (arm.values(lambda run, key=key: run.recovery[key]) for key in ("level", "area"))
            row |= {"level": level.mean(), "back": int(np.isfinite(back).sum()), "steps_until_back": np.median(back)}
            row |= {
                "area": area.mean(),
                "area_share": area.mean() / (level.mean() * np.mean(left)) if level.mean() > 0 else np.nan,
            }
        if len(after := arm.values(lambda run: run.recovery["after"])):
            row |= interval("after", paired.t_interval(after)) | against_twin(arm, lambda run: run.recovery["after"])
        rows.append(row)
    return rows


def costs_table(study: Study) -> list[dict]:
    rows = []
    for arm in study.arms:
        summaries = [run.summary for run in arm.runs.values()]
        row = {"study": study.label, "arm": arm.label, "seeds": len(summaries)}
        row |= {key: float(np.mean([s[key] for s in summaries])) for key in ("total", "nonzero", "sparsity")}
        row["zeros"] = row["total"] - row["nonzero"]
        row["emptied"] = ", ".join(sorted({name for s in summaries for name in s["emptied"]}))
        for part in ("disk", "multiply_adds"):
            names = dict.fromkeys(name for s in summaries for name in s.get(part, {}))
            row |= {
                f"{part}_{name}": arm.values(lambda r, p=part, n=name: r.summary.get(p, {}).get(n)).mean() for name in names
            }
        row["resident_bytes"] = arm.values(lambda run: run.summary["resident_bytes"]).mean()
        keys = ("agent_steps_per_second_while_learning", "peak_ram_bytes", "peak_gpu_bytes", "mean_gpu_utilisation_percent")
        for key in keys:
            found = arm.values(lambda run, key=key: run.summary["time"].get(key))
            row[key] = found.mean() if len(found) else np.nan
        rows.append(row)
    return rows


def trend_table(study: Study) -> list[dict]:
    """Slope of the final return over the rate, dense included, a criterion, without the rates of the positive controls.

    A trend of several seeds needs the same rates of each: of those that most seeds have in common.
    """
    rows = []
    for criterion, arms in study.by_criterion().items():
        twins = {a.rate: {r.seed: (r, t) for r, t in a.pairs if "final" in r.scores} for a in arms if 0 < a.rate < CONTROLS}
        designs = [[rate for rate in twins if len(twins[rate]) >= len(fewest)] for fewest in twins.values()]
        common = [(sorted(set.intersection(*(set(twins[r]) for r in rates))), rates) for rates in designs if len(rates) > 1]
        seeds, rates = max(common, key=lambda design: tuple(map(len, design)), default=([], []))
        if not seeds:
            continue
        dense = [[twins[rates[0]][seed][1].scores["final"] for seed in seeds]]
        scores = np.array(dense + [[twins[rate][seed][0].scores["final"] for seed in seeds] for rate in rates])
        a_tenth = paired.slopes(scores, np.array([0.0, *rates])) / 10
        row = {"study": study.label, "criterion": criterion, "rates": " ".join(f"{r:g}" for r in rates), "seeds": len(seeds)}
        row["role"] = "declared" if study.declares and criterion == DECLARED.partition("-")[0] else "exploratory"
        row |= interval("slope", paired.t_interval(a_tenth)) | interval("change", paired.ratio_interval(a_tenth, scores[0]))
        rows.append(row | {"p": float(paired.p_value(a_tenth))})
    for row, p in zip(rows, paired.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def aggregate_table(studies: list[Study]) -> list[dict]:
    """Interquartile mean of the change against the dense mean, from 10 seeds of a game on, or 5 of each of several."""
    families: dict[tuple, dict[str, np.ndarray]] = {}
    for study in studies:
        for arm in study.arms:
            scores, dense = arm.paired_scores("final")
            if arm.rate and len(scores) > 1 and dense.mean() > 0:
                family = families.setdefault((study.first.study_key(("env_id",)), arm.label), {})
                family[study.label] = (scores - dense) / dense.mean()
    rows = []
    for (_, arm), games in families.items():
        changes = list(games.values())
        if min(map(len, changes)) >= (5 if len(changes) > 1 else 10):  # with 3 of 4 games the interval covers 92 %
            row = {"studies": "; ".join(games), "arm": arm, "games": len(games), "pairs": sum(map(len, changes))}
            rows.append(row | interval("iqm", paired.iqm_interval(changes)))
    return rows


def runs_table(studies: list[Study]) -> list[dict]:
    """Every run that is counted, with the numbers of its own folder."""
    rows = []
    for study in studies:
        for arm in study.arms:
            for seed, run in arm.runs.items():
                row = {"study": study.label, "arm": arm.label, "seed": seed, "run": run.name}
                row |= {"paired": any(run is one for one, _ in arm.pairs), "games": run.games.get("final", 0)}
                row |= {moment: run.scores.get(moment, np.nan) for moment in MOMENTS}
                rows.append(row | {key: run.recovery[key] for key in ("level", "back", "area", "after")})
    return rows


def rliable_scores(studies: list[Study]) -> dict[str, np.ndarray]:
    """Final returns (seeds, games) an arm, as rliable takes them: seeds that an arm has in every game that it was run in."""
    arms: dict[str, dict[str, Arm]] = {}
    for study in studies:
        told = study.label.replace(f", {study.first.env_id}", "")
        for arm in study.arms:
            if len(arm.scores("final")):
                arms.setdefault(f"{told}, {arm.label}", {})[study.first.env_id] = arm
    found = {}
    for name, games in arms.items():
        seeds = set.intersection(*({seed for seed, run in arm.runs.items() if "final" in run.scores} for arm in games.values()))
        columns = [[games[env_id].runs[seed].scores["final"] for seed in sorted(seeds)] for env_id in sorted(games)]
        found[name] = np.array(columns, float).T
    return found
