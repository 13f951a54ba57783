"""What a checkpoint and a resume cost a DQN run with a full replay buffer: seconds, bytes, memory.

    python -m checks.resume_cost

A run of 2M steps plays at random up to --stop-at. There SIGTERM makes it write its checkpoint and end. Then it is started again
and stopped, several times. Random play fills the buffer within minutes. How well its frames compress depends on the game.
"""

import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parents[1]
NEVER_LEARNS = ["--learning-starts=1999000", "--end-e=1", "--prune-type=none", "--prune-at=1", "--eval-episodes=0"]


@dataclass
class Args:
    stop_at: int = 1_900_000
    """agent steps, of 2M, before the first stop, which comes within a minute after them; below 1M the buffer is not full"""
    repeats: int = 3
    """stops and resumes"""


def main(args: Args) -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as scratch:  # a disk, where /tmp may be memory
        words = [sys.executable, str(ROOT / "dqn_atari_prune.py"), *NEVER_LEARNS, "--checkpoint-minutes=0"]
        words += [f"--runs-dir={scratch}", "--run-name=cost"]
        for _ in range(args.repeats + 1):
            began, resumed, step = time.perf_counter(), None, 0
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for line in process.stdout:
                print(line, end="", flush=True)
                if found := re.search(r"step ([\d,]+)", line):
                    step = int(found[1].replace(",", ""))
                if "resumed at step" in line:
                    resumed = time.perf_counter() - began
                if resumed or step >= args.stop_at:
                    break
            stopped = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            if process.wait() != 143:
                raise SystemExit(f"error: exit {process.returncode} of {' '.join(words)}")
            rows.append({"step": step, "resume, s": resumed, "checkpoint, s": time.perf_counter() - stopped})
            rows[-1]["checkpoint, MB"] = (Path(scratch) / "cost" / "checkpoint.pt").stat().st_size / 1e6
    print(pd.DataFrame(rows).round(1).to_string(index=False, na_rep="-"))
    print(f"peak memory of a process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.resume_cost", description=__doc__))
