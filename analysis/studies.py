"""Which runs are compared with which, and what is named instead.

A study is one algorithm, game and set of options. Each arm is compared with its twins, the dense runs of the same seed. The two
must have the same past: until the cut they have to be one run. Several continuations of one prune point (forks) are averaged.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from analysis.design import DECLARED, DESIGN, MEASURING
from analysis.runs import MOMENTS, Named, Run
from prune_utils.run import CRITERIA, NEUTRAL, OF_THE_CUT, differences

KINDS = ("none", "A/A", "small", *CRITERIA)
"""kinds of arms, in the order in which they are shown"""


@dataclass(eq=False)
class Arm:
    """The runs of an arm by seed (several where it was forked) and their twins, the runs that they are compared with."""

    label: str
    criterion: str
    kind: str
    rate: float
    runs: dict[int, list[Run]] = field(default_factory=dict)
    twins: dict[int, list[Run]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it is a plain cut: one cut of all tensors, each at the arm's rate."""
        return self.criterion == self.kind

    @property
    def all_runs(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    def by_seed(self, measure: Callable[[Run], float | None]) -> dict[int, float]:
        """The mean over those runs of each seed that have a value."""
        means = {seed: mean(runs, measure) for seed, runs in self.runs.items()}
        return {seed: value for seed, value in means.items() if not np.isnan(value)}

    def values(self, measure: Callable[[Run], float | None]) -> np.ndarray:
        return np.array(list(self.by_seed(measure).values()), float)

    def quantity_by_seed(self, name: str) -> dict[int, float]:
        """The value of each seed whose runs all have it."""
        means = {seed: of_runs(name, runs) for seed, runs in self.runs.items()}
        return {seed: value for seed, value in means.items() if not np.isnan(value)}

    def quantity(self, name: str) -> np.ndarray:
        return np.array(list(self.quantity_by_seed(name).values()), float)

    @property
    def shares(self) -> bool:
        """Whether its changes may be shares. Not where a mean return is below 0 on the way, as in Pong: 0 is no floor there."""
        runs = [run for of_seeds in (self.runs, self.twins) for runs in of_seeds.values() for run in runs]
        return not any((run.bins < 0).any() or (run.bins_before < 0).any() for run in runs)

    def pairs(self, quantity: str) -> dict[int, tuple[float, float]]:
        """For each seed its value and its reference: the twins' value or, for the shock, that of its network before the cut."""
        pairs = {}
        for seed, twins in self.twins.items():
            runs = self.runs[seed]
            sides = [(quantity, runs), (quantity, twins)]
            if quantity == "shock":
                sides = [("after_prune", runs), ("before_prune", runs)]
            pairs[seed] = tuple(of_runs(name, of) for name, of in sides)
        return {seed: pair for seed, pair in pairs.items() if not np.isnan(pair).any()}

    def contrast(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """The pairs as two arrays, one number per seed each."""
        return tuple(np.array(list(self.pairs(quantity).values()), float).reshape(-1, 2).T)


def of_runs(quantity: str, runs: list[Run]) -> float:
    """Mean over runs; nan where one of them lacks the value, since a stuck agent is not missing at random."""
    return float(np.mean([run.value(quantity) for run in runs]))


def mean_bins(of_seeds: Iterable[list[Run]], name: str = "bins") -> np.ndarray:
    """Bins of each seed, means over its runs: (bins, seeds); nan where a run has no game in a bin."""
    return np.array([np.mean([getattr(run, name) for run in runs], axis=0) for runs in of_seeds]).T


def mean(runs: list[Run], measure: Callable[[Run], float | None]) -> float:
    """Mean over the runs that have a value; nan where none has."""
    values = [value for run in runs if (value := measure(run)) is not None and not np.isnan(value)]
    return float(np.mean(values)) if values else np.nan


@dataclass(eq=False)
class Study:
    """The runs of one algorithm, game and set of options, as arms: dense, A/A, small networks, then each criterion by rate."""

    runs: list[Run]
    arms: list[Arm] = field(default_factory=list)
    not_compared: dict[Run, str] = field(default_factory=dict)
    label: str = ""

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def slug(self) -> str:
        """The label as a part of a file name, cut short where it is long."""
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")
        return plain if len(plain) <= 80 else f"{plain[:80]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"

    @property
    def dense(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.kind == "none"), None)

    def arm(self, label: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.label == label), None)

    @property
    def arm_runs(self) -> list[Run]:
        """Every run once. The A/A arm is left out, because it is made of dense runs."""
        return [run for arm in self.arms if arm.kind != "A/A" for run in arm.all_runs]

    @property
    def variants(self) -> list[Arm]:
        """Arms of several cuts, another scope or tensors left whole. Their twins are the plain cuts of their rate."""
        plain_cuts, variants = {(arm.kind, arm.rate): arm for arm in self.arms if arm.plain}, []
        for arm in self.arms:
            plain = plain_cuts.get((arm.kind, arm.rate))
            if plain and not arm.plain:
                twins = {seed: plain.runs[seed] for seed in arm.twins if seed in plain.twins}
                variants.append(Arm(arm.label, arm.criterion, arm.kind, arm.rate, arm.runs, twins))
        return variants

    def by_criterion(self) -> dict[str, list[Arm]]:
        """For each criterion the dense arm and the criterion's own by rate. Where nothing is pruned, the dense arm alone."""
        dense = [arm for arm in self.arms if arm.kind == "none"]
        criteria = dict.fromkeys(arm.criterion for arm in self.arms if arm.rate) or {"none": None}
        return {name: dense + [arm for arm in self.arms if arm.rate and arm.criterion == name] for name in criteria}

    @property
    def steps(self) -> int:
        return max(run.summary["global_step"] for run in self.arm_runs)

    @property
    def cuts(self) -> set[int]:
        return {run.cut_step for run in self.arm_runs}

    @property
    def off_design(self) -> dict:
        """Options that all its runs share and that are not those of the declared design."""
        design, shared = DESIGN[self.first.algorithm], [run.design() for run in self.runs if run.kind != "small"]
        own = {name: value for name, value in sorted(shared[0].items()) if value != design.get(name)}
        return {name: value for name, value in own.items() if all(options.get(name) == value for options in shared)}

    @property
    def declares(self) -> bool:
        """Whether it is the declared study. Options in MEASURING may differ."""
        return not self.off_design.keys() - MEASURING

    @property
    def machines(self) -> str:
        """What its finished runs computed in and on. Hashes of scripts are added if they differ, and seeds if anything does."""
        hashes, seeds = {run.shaping["source_sha256"] for run in self.arm_runs}, {}
        for run in self.arm_runs:
            resolved = run.config["resolved"]
            machine = f"{resolved['precision']} on {run.device_name}, threads {resolved['num_threads']}"
            machine += f", torch {resolved['torch']}"
            machine += f", script {resolved['source_sha256'][:8]}" if len(hashes) > 1 else ""
            seeds.setdefault(machine, set()).add(run.seed)
        if len(seeds) > 1:
            return "; ".join(f"{machine} (seeds {', '.join(map(str, sorted(own)))})" for machine, own in seeds.items())
        return "".join(seeds)


def group(runs: list[Run]) -> list[Study]:
    """Group runs into studies. Dense networks that are smaller than those of a study run beside them become an arm of it."""
    studies: dict[str, Study] = {}
    for run in runs:
        studies.setdefault(run.study_key(), Study([])).runs.append(run)
    for key, study in list(studies.items()):
        pruned = [other for other in studies.values() if other is not study and any(run.rate for run in other.runs)]
        width = ("hidden_size", "width")
        hosts = [other for other in pruned if other.first.study_key(width) == study.first.study_key(width)]
        hosts = [host for host in hosts if all(study.first.options[name] <= host.first.options[name] for name in width)]
        if hosts and all(run.kind == "none" for run in study.runs):
            for run in study.runs:
                own = {name: run.options[name] for name in width if run.options[name] != hosts[0].first.options[name]}
                run.kind, run.label = "small", ", ".join(["none", *(f"{name} {value:g}" for name, value in own.items())])
                run.criterion = run.label
            hosts[0].runs += study.runs
            del studies[key]
    return sorted(studies.values(), key=lambda study: (study.first.algorithm, study.first.env_id, study.first.study_key()))


def label_studies(studies: list[Study]) -> None:
    """Label each study: algorithm and game, then the options in which the studies of one report differ."""
    for study in studies:
        designs = [other.first.design() for other in studies if other.first.algorithm == study.first.algorithm]
        own = {name: value for name, value in sorted(study.first.design().items()) if name not in {"env_id", *MEASURING}}
        options = [f"{name} {value}" for name, value in own.items() if any(design.get(name) != value for design in designs)]
        study.label = ", ".join([study.first.algorithm.upper(), study.first.env_id, *options])


# --------------------------------------------------------------------------------------------------------- what is a pair
def apart(dense: Run, run: Run) -> str:
    """What keeps two runs from being a pair: options and resolved values, else the first row that differs before the cut."""
    changed = differences(dense.shaping, run.shaping, NEUTRAL | OF_THE_CUT | {"cuda"})  # the device is compared
    steps = [{"cut": r.cut_step, "end": r.summary["global_step"]} for r in (dense, run)]
    return changed or differences(*steps) or other_games(dense, run) or other_curves(dense, run)


def other_games(dense: Run, run: Run) -> str:
    """The first evaluation game that differs before the cut, or that starts from another seed after it."""
    for moment in MOMENTS:
        columns = ["episode", "seed", *(["return", "length", "truncated"] if moment == "before_prune" else [])]
        ours, theirs = (r.games_of(moment)[columns].to_numpy().tolist() for r in (dense, run))
        for ours_row, theirs_row in zip_longest(ours, theirs):
            if ours_row != theirs_row:
                texts = [
                    ", ".join(map(" ".join, zip(columns, r, strict=True))) if r else "none" for r in (ours_row, theirs_row)
                ]
                return f"eval.csv, {moment}: {texts[0]} -> {texts[1]}"
    return ""


def other_curves(dense: Run, run: Run) -> str:
    """The first row of curves.csv before the cut that differs."""
    for line, (ours, theirs) in enumerate(zip_longest(dense.past, run.past, fillvalue="the cut"), 2):
        if ours != theirs:
            return f"curves.csv, line {line}: {ours} -> {theirs}"
    return ""


# ------------------------------------------------------------------------------------------------------------- the arms
def build(study: Study, everything: list[Run], named: list[Named]) -> None:
    """Make the arms of a study and their pairs. Name the runs that cannot be paired, and the gaps."""
    ordered = sorted(study.runs, key=lambda r: -1 if r.fork_seed is None else r.fork_seed)
    ordered.sort(key=lambda r: (KINDS.index(r.kind), r.criterion, r.rate, r.label, r.seed))
    labels, seeds = dict.fromkeys(run.label for run in ordered), sorted({run.seed for run in ordered})
    has_dense = any(run.kind == "none" and run.finished for run in study.runs)
    arms: dict[str, Arm] = {}
    for seed in seeds:
        runs = counted([run for run in ordered if run.seed == seed and run.finished], named)
        twins = find_twins(runs)
        for run in runs:
            reason = reason_apart(run, twins, everything)
            if reason:
                named.append(Named("not compared", run.name, reason))
                if has_dense:  # its mean is to be of seeds that dense has too
                    study.not_compared[run] = reason
                    continue
            arm = arms.setdefault(run.label, Arm(run.label, run.criterion, run.kind, run.rate))
            arm.runs.setdefault(seed, []).append(run)
            if not twins or run.kind == "small":
                continue
            if run.kind != "none":
                arm.twins[seed] = twins
            if changed := differences(twins[0].machine, run.machine):
                told = f"compared all the same with {twins[0].name}, whose past it has: {changed}"
                named.append(Named("other machine", run.name, told))
    study.arms = [arms[label] for label in labels if label in arms]
    forks = {seed: runs[1:] for seed, runs in study.dense.runs.items() if len(runs) > 1} if study.dense else {}
    if forks:
        first = {seed: study.dense.runs[seed][:1] for seed in forks}
        study.arms.insert(1, Arm("A/A", "A/A", "A/A", 0.0, forks, first))
        if gaps := [str(seed) for seed in study.dense.runs if seed not in forks]:
            told = f"no second dense run of seed {', '.join(gaps)} that is compared"
            named.append(Named("missing", f"{study.label}, A/A", told))
    there = {(run.label, run.seed) for run in study.runs}
    for label in labels:
        if gaps := [str(seed) for seed in seeds if (label, seed) not in there]:
            present = f"seeds {', '.join(map(str, seeds))} are in the study"
            named.append(Named("missing", f"{study.label}, {label}", f"no run of seed {', '.join(gaps)}; {present}"))


def counted(runs: list[Run], named: list[Named]) -> list[Run]:
    """The finished runs of a seed, dense first, with each arm and fork once.

    If there are several of one, `with_most_pairs` chooses: a dense run by its pairs among all runs, others by their pairs among
    the runs chosen before.
    """
    cells: dict[tuple, list[Run]] = {}
    for run in runs:
        cells.setdefault((run.label, run.fork_seed), []).append(run)
    once = []
    for (label, _), same in cells.items():
        first = with_most_pairs(same, once or runs) if len(same) > 1 else same[0]
        once.append(first)
        for run in same:
            if run is not first:
                named.append(Named("counted once", str(run.folder), f"of {label}, seed {run.seed}, {first.folder} is counted"))
    return once


def with_most_pairs(candidates: list[Run], runs: list[Run]) -> Run:
    """The candidate that pairs with the declared arm; of several, the one with most pairs; of equals, the first."""
    pairs = {run: [other.label for other in runs if not apart(run, other)] for run in candidates}
    return max(candidates, key=lambda run: (DECLARED in pairs[run], len(pairs[run])))


def find_twins(runs: list[Run]) -> list[Run]:
    """The dense runs of a seed that are one run until the cut: the one with most pairs, and those that pair with it."""
    dense = [run for run in runs if run.kind == "none"]
    if not dense:
        return []
    first = with_most_pairs(dense, runs)  # of equals the first, no fork
    return [first, *(run for run in dense if run is not first and not apart(first, run))]


def reason_apart(run: Run, twins: list[Run], everything: list[Run]) -> str:
    """Why a run is not compared with the dense runs of its seed; empty where it is."""
    if run.kind == "small" or run in twins:
        return ""
    if twins:
        twin = twins[0]
    else:  # the dense run of another study that differs least
        same = (run.algorithm, run.env_id, run.seed)
        dense = [r for r in everything if r.finished and r.kind in ("none", "small")]
        others = [r for r in dense if (r.algorithm, r.env_id, r.seed) == same]
        twin = min(others, key=lambda other: len(apart(other, run)), default=None)
        if twin is None:
            return f"there is no finished dense run of seed {run.seed}"
    difference = apart(twin, run)
    return f"it differs from the dense run {twin.name}: {difference}" if difference else ""
