"""Kill a run again and again (-9), start it again, and compare it, bit for bit, with one that was never disturbed.

    python scripts/kill_runs.py --algorithm dqn --kills 20

Some kills come at random moments, some while a checkpoint is written, some between the evaluations of the cut or in the work
that follows the last one. It prints what each killed process was doing and at which step it had begun, and exits 1 if a single
bit differs.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("model.pt", "model_packed.npz", "eval.csv", "curves.csv")
SIZES = {"dqn": ["--total-timesteps=6000", "--learning-starts=1000", "--buffer-size=3000"], "ppo": ["--total-timesteps=12288"]}


@dataclass
class Args:
    algorithm: Literal["dqn", "ppo"] = "dqn"
    """which script to disturb"""
    kills: int = 20
    """processes to kill before the run may end"""
    patience: float = 8.0
    """seconds that a process may live after it has loaded, at most; eight times as long where its next evaluation is awaited"""
    seed: int = 1
    """seed of the moments"""


def bits(folder: Path) -> dict:
    """What must repeat: the bytes of the result files, and the summary but for its clocks."""
    summary = json.loads((folder / "summary.json").read_text())
    files = {name: (folder / name).read_bytes() for name in RESULTS if (folder / name).exists()}
    return files | {"summary": {key: value for key, value in summary.items() if key != "time"}}


def disturb(
    words: list[str], folder: Path, kills: int, patience: float, rng: random.Random, number=signal.SIGKILL
) -> list[tuple[int, str]]:
    """Run a command until it ends by itself after so many kills; the step at which each process began and what ended it."""
    lives: list[tuple[int, str]] = []
    while not lives or lives[-1][1] != "finished":
        log = folder.parent / f"{folder.name}.{len(lives)}.log"
        with open(log, "w") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        part, games = folder / "checkpoint.pt.part", folder / "eval.csv"
        moment = rng.choice(["checkpoint", "evaluation", "random", "random"]) if len(lives) < kills else "never"
        loaded = lambda: (folder / "checkpoint.pt").exists() and "goes on" in log.read_text()  # noqa: E731, B023
        while process.poll() is None and not (loaded() or (not lives and (folder / "checkpoint.pt").exists())):
            time.sleep(0.005)
        played, doing = games.stat().st_mtime_ns if games.exists() else 0, "at work"
        deadline = time.monotonic() + patience * {"random": rng.random(), "evaluation": 8}.get(moment, 1)
        while process.poll() is None and (moment == "never" or time.monotonic() < deadline):
            if moment == "checkpoint" and part.exists():
                break
            if moment == "evaluation" and games.exists() and games.stat().st_mtime_ns != played:
                doing = "just after an evaluation"  # cutting, in the next one, or saving the results
                time.sleep(0.05 * rng.random())
                break
            time.sleep(0.0005)
        while_writing = part.exists()
        process.send_signal(number)
        code = process.wait()
        began = int((re.search(r"goes on at step ([\d,]+)", log.read_text()) or [0, "0"])[1].replace(",", ""))
        if code == 0:
            lives.append((began, "finished"))
        elif code not in (-number, 128 + number):
            raise SystemExit(f"error: exit {code} of {' '.join(words)}\n{log.read_text()}")
        else:
            lives.append((began, f"killed {'in a checkpoint' if while_writing else doing}"))
    return lives


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, str(ROOT / f"{args.algorithm}_atari_prune.py"), *SIZES[args.algorithm], "--prune-rate=0.5"]
        words += ["--eval-episodes=4", "--num-threads=1", f"--runs-dir={scratch}"]
        subprocess.run([*words, "--run-name=whole"], check=True, stdout=subprocess.DEVNULL, env=os.environ)
        disturbed = [*words, "--run-name=disturbed", "--checkpoint-minutes=0.005"]
        folder = Path(scratch) / "disturbed"
        lives = disturb(disturbed, folder, args.kills, args.patience, random.Random(args.seed))
        for index, (began, end) in enumerate(lives, 1):
            print(f"process {index}: from step {began:,}: {end}")
        kinds = {kind: sum(end == kind for _, end in lives) for kind in {end for _, end in lives}}
        print(f"{args.algorithm}: {len(lives) - 1} kills, {len({began for began, _ in lives})} steps begun at; {kinds}")
        one, two = bits(Path(scratch) / "whole"), bits(folder)
        different = [key for key in one if one[key] != two[key]]
        print("every bit the same" if not different else f"different: {', '.join(different)}")
        sys.exit(bool(different) or len(lives) <= args.kills)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
