"""Kill a whole sweep again and again with SIGKILL, driver and runs, start it again, and compare it with an undisturbed one.

    python -m checks.kill_sweeps --algorithm ppo --seeds 1 2 3 --kills 5

The whole matrix of the study with short runs. It prints how many runs were finished at each kill and the share of the agent
steps that forking saved. It exits 1 if a run was finished twice or a bit differs.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from checks.kill_runs import bits

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"dqn": "--total-timesteps=3200 --learning-starts=800 --buffer-size=1600", "ppo": "--total-timesteps=3072"}


@dataclass
class Args:
    algorithm: Literal["dqn", "ppo"] = "ppo"
    """which sweep"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of the matrix"""
    kills: int = 5
    """how often the sweep is killed"""
    seed: int = 1
    """seed of the moments"""


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed, disturbed = Path(scratch) / "undisturbed", Path(scratch) / "disturbed"
        words = [str(ROOT / "scripts" / f"sweep_{args.algorithm}.sh"), *SIZES[args.algorithm].split(), "--num-envs=2"]
        words += ["--eval-episodes=2", "--checkpoint-minutes=0.01"]
        environment = os.environ | {"SEEDS": " ".join(map(str, args.seeds)), "PYTHON": sys.executable}
        began = time.monotonic()
        subprocess.run(words, env=environment | {"RUNS_DIR": str(undisturbed)}, check=True, stdout=subprocess.DEVNULL)
        seconds, rng = time.monotonic() - began, random.Random(args.seed)
        finished, twice = {}, []
        for life in range(args.kills + 1):
            environment["RUNS_DIR"] = str(disturbed)
            sweep = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
            if life < args.kills:
                time.sleep(rng.uniform(8, 8 + seconds / 3))
                subprocess.run(["pkill", "-9", "-s", str(sweep.pid)], check=False)  # all processes of its session
            if sweep.wait() > 0:
                raise SystemExit(f"error: exit {sweep.returncode} of {' '.join(words)}")
            found = {file.parent.name: file.stat().st_mtime_ns for file in disturbed.glob("*/summary.json")}
            twice += [name for name in finished if finished[name] != found.get(name)]
            finished = found
            print(f"{'killed' if life < args.kills else 'ended'}: {len(finished)} runs are finished", flush=True)
        names = sorted(path.parent.name for path in undisturbed.glob("*/summary.json"))
        different = [name for name in names if name not in finished or bits(undisturbed / name) != bits(disturbed / name)]
        summaries = [bits(undisturbed / name)["summary"] for name in names]
        run, whole = (sum(summary[key] for summary in summaries) for key in ("agent_steps_run", "global_step"))
        print(f"{args.algorithm}: {len(names)} runs; forking saved {1 - run / whole:.1%} of {whole:,} agent steps")
        print("every bit the same" if not different else f"different: {', '.join(different)}")
        print("every run finished once" if not twice else f"finished twice: {', '.join(twice)}")
        sys.exit(bool(different or twice))


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.kill_sweeps", description=__doc__))
