"""What a checkpoint and a resume cost a real DQN run with a full replay buffer: seconds, bytes, memory.

    python scripts/resume_cost.py

A run of 2M steps plays at random up to --stop-at, is stopped there (SIGTERM: it writes its checkpoint and ends) and started
again and stopped, several times. Random play fills the buffer in minutes; how far its frames compress is the game's affair.
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


@dataclass
class Args:
    stop_at: int = 1_900_000
    """agent steps, of 2M, before the first stop (it comes within a minute after them); below 1M the buffer is not full"""
    repeats: int = 3
    """stops and resumes"""


def main(args: Args) -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as scratch:  # a disk, where /tmp may be memory
        words = [
            sys.executable,
            str(ROOT / "dqn_atari_prune.py"),
            "--learning-starts=1999000",
            "--end-e=1",
            "--eval-episodes=0",
        ]
        words += ["--checkpoint-minutes=0", "--prune-type=none", "--prune-at=1", f"--runs-dir={scratch}", "--run-name=cost"]
        for _ in range(args.repeats + 1):
            began, resumed, step = time.perf_counter(), None, 0
            process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            for line in process.stdout:
                step = int(re.search(r"step ([\d,]+)", line)[1].replace(",", ""))
                if "goes on" in line:
                    resumed = time.perf_counter() - began
                print(line, end="", flush=True)
                if resumed or step >= args.stop_at:
                    break
            asked = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            if process.wait() != 143:
                raise SystemExit(f"error: exit {process.returncode} of {' '.join(words)}")
            rows.append({"step": step, "resume, s": resumed, "checkpoint, s": time.perf_counter() - asked})
            rows[-1]["checkpoint, MB"] = (Path(scratch) / "cost" / "checkpoint.pt").stat().st_size / 1e6
    print(pd.DataFrame(rows).round(1).to_string(index=False, na_rep="-"))
    print(f"peak memory of a process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
