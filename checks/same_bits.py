"""Do these scripts still end in the same bits as those of an earlier commit?

    git worktree add /tmp/old c59f0ea
    python -m checks.same_bits --old /tmp/old --keep /tmp/same_bits

It runs the same short trainings in both checkouts, through their command lines. It compares model.pt tensor by tensor, and
eval.csv and curves.csv byte by byte. A killed case kills the new run with SIGKILL and starts it again, several times. The old
run is never disturbed. It prints a Markdown table and exits 1 at any difference. The comparison takes about a quarter of an
hour on two cores. With --keep, the old runs are trained only once.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--env-id=SpaceInvadersNoFrameskip-v4 --num-envs=2 --num-threads=1 --precision=fp32 --eval-episodes=1"
SMALL += " --checkpoint-minutes=0 --prune-rate=0.5"
SIZE = {
    "dqn": "--hidden-size=64 --batch-size=8 --total-timesteps=2200 --learning-starts=900 --buffer-size=700"
    " --target-network-frequency=200",
    "ppo": "--hidden-size=64 --update-epochs=2 --total-timesteps=1536",
}
"""DQN: a replay buffer that wraps and 325 updates, PPO: 6 rollouts of 8 updates"""


@dataclass(frozen=True)
class Case:
    """A training that both checkouts run: the options beside SMALL and SIZE, of which the last of a name counts."""

    name: str
    options: str = ""
    parent: str = ""
    """name of the case that it is forked from"""
    kills: int = 0
    """how often the new run is killed"""

    @property
    def algorithm(self) -> str:
        return self.name.split()[0]

    @property
    def flags(self) -> list[str]:
        return f"{SMALL} {SIZE[self.algorithm]} {self.options}".split()

    def folder(self) -> str:
        """A run name of its own for these options on this version of torch."""
        digest = hashlib.sha256(f"{self} {self.flags} {torch.__version__}".encode()).hexdigest()
        return f"{re.sub('[^a-zA-Z0-9]', '-', self.name)}-{digest[:8]}"


def cases() -> list[Case]:
    found = []
    for algorithm in ("dqn", "ppo"):
        arms = {
            "none": "--prune-type=none",
            "l1": "--prune-type=l1",
            "random": "--prune-type=random",
            "global l1": "--prune-type=l1 --prune-scope=global",
            "global random": "--prune-type=random --prune-scope=global",
            "weights only": "--prune-type=l1 --no-prune-bias",
            "from scratch": "--prune-type=l1 --prune-at=0",
            "early": "--prune-type=random --prune-at=0.3",
            "after training": "--prune-type=l1 --prune-at=1",
            "other seed": "--prune-type=l1 --seed=7 --eval-episodes=2",
            "one game": "--prune-type=l1 --num-envs=1",
            "sticky": "--prune-type=l1 --env-id=ALE/SpaceInvaders-v5",
        }
        found += [Case(f"{algorithm} {name}", options) for name, options in arms.items()]
        parent = f"{algorithm} none"
        found += [
            Case(f"{algorithm} fork", "--prune-type=l1 --prune-rate=0.8", parent),
            Case(f"{algorithm} global random fork", "--prune-type=random --prune-scope=global --no-prune-bias", parent),
            Case(f"{algorithm} A/A fork", "--prune-type=none --fork-seed=1", parent),
            Case(f"{algorithm} fork with a seed", "--prune-type=random --fork-seed=2", parent),
            Case(f"{algorithm} killed fork", "--prune-type=random --fork-seed=2 --checkpoint-minutes=0.002", parent, kills=5),
        ]
    size = "--hidden-size=512 --num-envs=8"
    bf16 = "--precision=bf16 --total-timesteps=1000 --learning-starts=300"  # short: a CPU without bf16 is six times slower
    ppo_bf16 = "--precision=bf16 --update-epochs=1 --total-timesteps=768"
    long = "--prune-type=l1 --checkpoint-minutes=0.002"
    return [
        *found,
        Case("dqn full size", f"--prune-type=l1 {size} --batch-size=32 --learning-starts=400 --total-timesteps=1200"),
        Case("dqn slow target", "--prune-type=l1 --tau=0.5"),
        Case("dqn bf16", f"--prune-type=l1 {bf16}"),
        Case("dqn bf16 slow target", f"--prune-type=random {bf16} --tau=0.5"),
        Case("dqn bf16 none", f"--prune-type=none {bf16}"),
        Case("dqn bf16 fork", f"--prune-type=l1 {bf16}", "dqn bf16 none"),
        Case("dqn killed", f"{long} --total-timesteps=4000", kills=5),
        Case("dqn killed sticky", f"{long} --total-timesteps=3000 --env-id=ALE/SpaceInvaders-v5", kills=5),
        Case("ppo full size", f"--prune-type=l1 {size} --update-epochs=4 --total-timesteps=2048"),
        Case("ppo other losses", "--prune-type=l1 --no-anneal-lr --no-norm-adv --no-clip-vloss --target-kl=0.000001"),
        Case("ppo bf16", f"--prune-type=l1 {ppo_bf16}"),
        Case("ppo bf16 none", f"--prune-type=none {ppo_bf16}"),
        Case("ppo bf16 fork", f"--prune-type=l1 {ppo_bf16}", "ppo bf16 none"),
        Case("ppo killed", f"{long} --total-timesteps=3072", kills=5),
        Case("ppo killed sticky", f"{long} --total-timesteps=2304 --env-id=ALE/SpaceInvaders-v5", kills=5),
    ]


@dataclass
class Args:
    old: Path
    """checkout of the earlier commit"""
    new: Path = ROOT
    """checkout to compare with it"""
    only: tuple[str, ...] = ()
    """only the cases whose name contains one of these"""
    keep: Path | None = None
    """folder that keeps the runs, so that old ones need not be trained again; for one machine only"""
    jobs: int = 2
    """runs side by side"""
    prepare: bool = False
    """train the old runs into --keep and compare nothing"""


def saved_step(folder: Path) -> int:
    """Agent steps of the last checkpoint of a run that is being trained."""
    try:
        return torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True)["global_step"]
    except (FileNotFoundError, RuntimeError):  # none yet, or it is just being replaced: mmap has its own error for that
        return 0


def resumed_steps(log: Path) -> list[int]:
    """The steps at which the processes that wrote this log resumed or forked."""
    found = re.findall(r"(?:resumed|goes on|forked from \S+) at step ([\d,]+)", log.read_text())
    return [int(step.replace(",", "")) for step in found]


def train(checkout: Path, case: Case, runs: Path, kills: int = 0) -> list[int]:
    """Run a case to its end, killed so many times on the way; the steps at which its processes began."""
    folder, log = runs / case.folder(), runs / f"{case.folder()}.log"
    if (folder / "summary.json").exists():
        return [0]
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, f"{case.algorithm}_atari_prune.py", *case.flags, f"--runs-dir={runs}"]
    words += [f"--run-name={folder.name}"]
    if case.parent:
        words += [f"--fork-from={runs / find(case.parent).folder()}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    total = int(re.findall(r"--total-timesteps=(\d+)", " ".join(words))[-1])
    first = total // 2 if case.parent else 0  # of a fork: its parent's cut
    moments = [first + (total - first) * kill // (kills + 1) for kill in range(1, kills + 1)]
    with open(log, "w") as output:
        for life, moment in enumerate([*moments, None]):
            process = subprocess.Popen(words, cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT)
            resumes = life + bool(case.parent)  # lines in the log that say so, once this process has resumed
            while moment is not None and process.poll() is None:
                if len(resumed_steps(log)) == resumes and saved_step(folder) >= moment:
                    process.kill()
                    break
                time.sleep(0.02)
            code = process.wait()
            if code != (0 if moment is None else -9):
                raise SystemExit(f"exit code {code} of {' '.join(words)}\n{log.read_text()[-2000:]}")
    return [*([] if case.parent else [0]), *resumed_steps(log)]


def find(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


def differing_tensors(old: Path, new: Path) -> str:
    """Names of the tensors of two state dicts that differ in type, shape or any bit; empty where none does."""
    one, two = (torch.load(file, weights_only=True) for file in (old, new))
    if list(one) != list(two):
        return f"names {', '.join(one)} against {', '.join(two)}"
    bits = [{name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items()} for tensors in (one, two)]
    return ", ".join(name for name in one if bits[0][name] != bits[1][name])


def differing_lines(old: Path, new: Path) -> str:
    """The first line in which two files differ; empty where all are the same. Old commits log no health of the network."""
    one, two = (file.read_bytes().decode().split("\n") for file in (old, new))
    if not any(",health/" in line for line in one):
        two = [line for line in two if ",health/" not in line]
    if one == two:
        return ""
    line = next((k for k, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), min(len(one), len(two)))
    return f"line {line + 1}: {' '.join(one[line : line + 1])} against {' '.join(two[line : line + 1])}"


def compare(old: Path, new: Path) -> list[str]:
    """A cell each for model.pt, eval.csv and curves.csv of two run folders."""
    cells = []
    for file, differing in {"model.pt": differing_tensors, "eval.csv": differing_lines, "curves.csv": differing_lines}.items():
        missing = [str(folder) for folder in (old, new) if not (folder / file).exists()]
        difference = f"missing in {' and '.join(missing)}" if missing else differing(old / file, new / file)
        cells.append(f"different ({difference})" if difference else "same")
    return cells


def run_case(case: Case, args: Args, old_runs: Path, new_runs: Path) -> tuple[Case, list[int], list[str]]:
    """Train a case in both checkouts; the steps at which the new processes began, and the cells of its row."""
    began, cells = [0], ["failed"] * 3
    try:
        train(args.old.resolve(), case, old_runs)
        if args.prepare:
            cells = ["trained"]
        else:
            began = train(args.new.resolve(), case, new_runs, case.kills)
            cells = compare(old_runs / case.folder(), new_runs / case.folder())
    except SystemExit as error:
        print(f"{case.name}: {error}", file=sys.stderr)
    print(f"{case.name}: {', '.join(dict.fromkeys(cells))}", file=sys.stderr, flush=True)
    return case, began, cells


def main(args: Args) -> None:
    for option, checkout in {"old": args.old, "new": args.new}.items():
        if not (checkout / "dqn_atari_prune.py").is_file():
            raise SystemExit(f"error: --{option} must be a checkout of this project, got {checkout}")
    chosen = [case for case in cases() if not args.only or any(part in case.name for part in args.only)]
    if not chosen:
        raise SystemExit(f"error: --only must be part of the name of a case, got {' '.join(args.only)}")
    chosen = [case for case in cases() if case in chosen or case.name in [other.parent for other in chosen]]
    if args.prepare and not args.keep:
        raise SystemExit("error: --prepare must come with --keep, which keeps what it trains")
    words = ["git", "-C", str(args.old), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True).stdout.strip() or "old"
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as scratch:
        old_runs = Path(scratch).resolve() / commit
        old_runs.mkdir(parents=True, exist_ok=True)
        new_runs = Path(tempfile.mkdtemp(prefix="new-", dir=old_runs.parent))  # comparisons side by side share the old runs
        rows = []
        with ThreadPoolExecutor(args.jobs) as threads:
            for forks in (False, True):  # the parents come first
                group = [case for case in chosen if bool(case.parent) == forks]
                rows += threads.map(lambda case: run_case(case, args, old_runs, new_runs), group)
    failed = [case.name for case, _, cells in rows if set(cells) - {"same", "trained"}]
    if args.prepare:
        print(f"{len(rows) - len(failed)} of {len(rows)} old runs are trained; nothing was compared")
        sys.exit(bool(failed))
    print(f"Every case has `{SMALL}`; DQN `{SIZE['dqn']}`; PPO `{SIZE['ppo']}`. The last of two equal options counts.\n")
    print("| case | options | model.pt | eval.csv | curves.csv |\n|---|---|---|---|---|")
    for case, began, cells in rows:
        options = f"`{case.options}`" + (f", forked from {case.parent}" if case.parent else "")
        options += f", killed {case.kills} times, processes began at {', '.join(map(str, began))}" if case.kills else ""
        print(f"| {case.name} | {options} | {' | '.join(cells)} |")
    print(f"\n{len(rows)} cases compared, " + (f"different: {', '.join(failed)}" if failed else "no difference"))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.same_bits", description=__doc__))
