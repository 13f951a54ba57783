"""Kill a run again and again with SIGKILL, start it again, and compare it, bit for bit, with one that was never disturbed.

    python -m checks.kill_runs --algorithm dqn --kills 20

Some kills come at random moments and some while a checkpoint is written. Others come right after an evaluation: in the cut, in
the next evaluation, or while results are saved. It prints the step at which each process began and what ended it. It exits 1 if
a bit differs or the run ended before all kills.
"""

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("model.pt", "model_packed.npz", "eval.csv", "curves.csv")
SIZES = {"dqn": ["--total-timesteps=6000", "--learning-starts=1000", "--buffer-size=3000"], "ppo": ["--total-timesteps=12288"]}
RESUMED = re.compile(r"resumed at step ([\d,]+)")


@dataclass
class Args:
    algorithm: Literal["dqn", "ppo"] = "dqn"
    """which script to disturb"""
    kills: int = 20
    """processes to kill before the run may end"""
    patience: float = 8.0
    """seconds, at most, that a process may live after it has resumed; eight times as long where it awaits an evaluation"""
    seed: int = 1
    """seed of the moments"""


def bits(folder: Path) -> dict:
    """What must repeat: the bytes of the result files, and the summary except for its clocks."""
    summary = json.loads((folder / "summary.json").read_text())
    files = {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}
    return files | {"summary": {key: value for key, value in summary.items() if key != "time"}}


def modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def await_moment(process: subprocess.Popen, folder: Path, patience: float, rng: random.Random) -> str:
    """Wait for the moment to kill a process: what it is doing then."""
    moment = rng.choice(["checkpoint", "evaluation", "random", "random"])
    games = folder / "eval.csv"
    part, before = folder / "checkpoint.pt.part", modified(games)
    deadline = time.monotonic() + patience * {"checkpoint": 1, "evaluation": 8, "random": rng.random()}[moment]
    while process.poll() is None and time.monotonic() < deadline:
        if moment == "checkpoint" and part.exists():
            break
        if moment == "evaluation" and modified(games) != before:
            time.sleep(0.05 * rng.random())
            return "just after an evaluation"
        time.sleep(0.0005)
    return "in a checkpoint" if part.exists() else "at work"


def disturb(words: list[str], folder: Path, kills: int, patience: float, rng: random.Random) -> list[tuple[int, str]]:
    """Run a command until it ends by itself after so many kills; the step at which each process began and what ended it."""
    lives: list[tuple[int, str]] = []
    while not lives or lives[-1][1] != "finished":
        log, doing = folder.parent / f"{folder.name}.{len(lives)}.log", ""
        with open(log, "w") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        if len(lives) < kills:  # a process is killed only once it has something to lose
            while process.poll() is None and not (
                (folder / "checkpoint.pt").exists() and (not lives or RESUMED.search(log.read_text()))
            ):
                time.sleep(0.005)
            doing = await_moment(process, folder, patience, rng)
            process.kill()
        code = process.wait()
        resumed = RESUMED.search(log.read_text())
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"error: exit {code} of {' '.join(words)}\n{log.read_text()}")
        lives.append((int(resumed[1].replace(",", "")) if resumed else 0, f"killed {doing}" if code else "finished"))
    return lives


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, str(ROOT / f"{args.algorithm}_atari_prune.py"), *SIZES[args.algorithm], "--prune-rate=0.5"]
        words += ["--eval-episodes=4", "--num-threads=1", f"--runs-dir={scratch}"]
        subprocess.run([*words, "--run-name=whole"], check=True, stdout=subprocess.DEVNULL)
        folder = Path(scratch) / "disturbed"
        words += ["--run-name=disturbed", "--checkpoint-minutes=0.005"]
        lives = disturb(words, folder, args.kills, args.patience, random.Random(args.seed))
        for index, (began, end) in enumerate(lives, 1):
            print(f"process {index}: from step {began:,}: {end}")
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(end for _, end in lives).items())
        print(
            f"{args.algorithm}: {len(lives)} processes began at {len({began for began, _ in lives})} different steps: {kinds}"
        )
        undisturbed, disturbed = bits(Path(scratch) / "whole"), bits(folder)
        different = [key for key in undisturbed if undisturbed[key] != disturbed.get(key)]
        print("every bit the same" if not different else f"different: {', '.join(different)}")
        sys.exit(bool(different) or len(lives) <= args.kills)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.kill_runs", description=__doc__))
