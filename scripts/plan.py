"""What a sweep will cost on this machine: SEEDS="1 2" RATES=0.5 GAMES=... scripts/plan.py ALGORITHM [OPTION OF EVERY RUN]...

Checks the matrix and the options, says on standard error what is to come, and prints one line for sweep.sh, separated by tabs:
runs side by side (JOBS, or for 0 what this machine can hold), threads of each, GPUs, last step, step of the cut, and what the
options add to the names of dense runs and of arms.
"""

import importlib
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SET_BY = {"seed": "SEEDS", "prune_rate": "RATES", "env_id": "GAMES", "runs_dir": "RUNS_DIR"}
SET_BY |= dict.fromkeys(("prune_type", "run_name", "fork_from", "fork_seed"), "the sweep's matrix")
REFUSED = {name: f"it is set by {where}" for name, where in SET_BY.items()}
REFUSED |= {"overwrite": "arms would fork from a run that is started anew; take another RUNS_DIR or delete the runs"}
RUN_BYTES = 1.0e9  # memory of a run of the default number of games, beside its replay buffer
RUNS_A_GPU = 8
SPEEDS = ROOT / "results" / "cpu_speed_bf16.json"


def speed(algorithm: str, runs_dir: Path, bf16: bool) -> tuple[float | None, str]:
    """Agent steps per second of one of the runs side by side, and where that is known from."""
    here = []
    for file in runs_dir.glob(f"*__{algorithm}_atari_prune__*/summary.json"):
        with suppress(ValueError, KeyError, TypeError):  # a broken one, which the report names
            here.append(json.loads(file.read_text())["time"]["agent_steps_per_second_while_learning"])
    if here := [steps for steps in here if steps]:
        return sum(here) / len(here), f"at the speed of {len(here)} finished runs in {runs_dir}"
    if not bf16 or not SPEEDS.exists():
        return None, ""
    rows = pd.DataFrame(json.loads(SPEEDS.read_text())["rows"])
    rows = rows.query("program == 'ours' and algorithm == @algorithm and side_by_side > 1")
    return (rows.steps_per_second / rows.side_by_side).mean(), f"at the speed in results/{SPEEDS.name}"


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a sweep that was killed reads no more: no traceback for that
    algorithm, *options = sys.argv[1:]
    seeds, rates, games = (os.environ[name].split() for name in ("SEEDS", "RATES", "GAMES"))
    switches = {name: os.environ.get(name, "0") for name in ("JOBS", "AA")}
    for name, value in switches.items():
        if not value.isdecimal():
            print(f"error: {name} must be a whole number, got {value}", file=sys.stderr)
            sys.exit(2)
    for word in options:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in REFUSED:
            print(f"error: {word} can't be an option of every run: {REFUSED[name]}", file=sys.stderr)
            sys.exit(2)
    script = importlib.import_module(f"{algorithm}_atari_prune")
    args = tyro.cli(script.Args, args=options)
    for name, option, values in (("SEEDS", "seed", seeds), ("RATES", "prune_rate", rates), ("GAMES", "env_id", games)):
        given = []
        for value in values:
            run = tyro.cli(script.Args, args=[*options, f"--{option.replace('_', '-')}", value])  # a wrong one exits with 2
            given.append(f"{getattr(run, option):g}" if option == "prune_rate" else str(getattr(run, option)))
        if given != values or not given or len(set(given)) < len(given):  # run names are made of these words
            right = " ".join(dict.fromkeys(given)) or "at least one word"
            print(f"error: {name} must be written in short and once, as {right}, got {' '.join(values)}", file=sys.stderr)
            sys.exit(2)

    jobs, dense = int(switches["JOBS"]), len(seeds) * len(games)
    arms = dense * (2 * len(rates) + (switches["AA"] != "0"))
    runs_dir, cores = Path(os.environ.get("RUNS_DIR", "runs")), len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count() * args.cuda
    buffer = args.buffer_size * script.TRANSITION_BYTES if algorithm == "dqn" else 0
    (available,) = (int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    if gpus:
        room = torch.cuda.mem_get_info()[0]
        jobs = jobs or gpus * max(1, min(RUNS_A_GPU, int(room // (RUN_BYTES + buffer))))
    jobs = jobs or max(1, min(cores, int(available // (RUN_BYTES + buffer))))
    args.num_threads = args.num_threads or (max(1, cores // jobs) if gpus else 1)

    steps = args.total_timesteps // args.steps_per_iteration * args.steps_per_iteration
    cut = script.cut_iteration(args) * args.steps_per_iteration
    in_all = (dense + arms) * steps - arms * cut
    bf16 = not gpus and args.precision != "fp32" and torch.cpu._is_avx512_bf16_supported()
    rate, source = speed(algorithm, runs_dir, bf16)
    hours = f"about {in_all / rate / jobs / 3600:.1f} hours {source}" if rate else "nothing measured yet to tell the hours from"
    disk = (dense + 2 * jobs) * (30e6 + buffer / 20)  # frames of SpaceInvaders compress 20-fold and more
    existing = next(p for p in (runs_dir, *runs_dir.absolute().parents) if p.exists())
    print(
        f"{dense + arms} runs of {steps:,} agent steps, {arms} of them forked at {cut:,}: {in_all:,} agent steps; "
        f"{jobs} side by side, threads {args.num_threads}; {hours}; "
        f"memory {jobs * (RUN_BYTES + buffer) / 1e9:.0f} GB of {available / 1e9:.0f}, "
        f"disk {disk / 1e9:.1f} GB of {shutil.disk_usage(existing).free / 1e9:.0f}",
        file=sys.stderr,
    )
    suffixes = []
    for args.prune_type in ("none", "l1"):
        suffixes.append(script.default_run_name(args).partition(f"__s{args.seed}")[2])
    print(jobs, args.num_threads, gpus, steps, cut, *suffixes, sep="\t")


if __name__ == "__main__":
    main()
