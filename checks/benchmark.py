"""Agent steps per second while learning: this project, an earlier commit of it, CleanRL and stable-baselines3, in turn.

    python -m checks.benchmark --programs ours cleanrl sb3 --cleanrl DIR --cleanrl-python PYTHON --jobs 1 2 --json speed.json
    python -m checks.benchmark --programs ours old --old CHECKOUT --jobs 1 2 --rounds 5

Programs run in turn, A B C A B C, each run in a process of its own, started by its command line. Runs side by side are measured
while all of them learn, and their speeds are added. They are compared with as many runs of the other program. Ratios are of one
round, so slow drifts cancel.

All programs have CleanRL's hyperparameters and the same lowered `--learning-starts`, and the first lap of learning is left out.
This project prunes before the first step, so that every lap masks its gradients. DQN explores with epsilon 0.01 from the start,
as in nine tenths of its training: CleanRL and stable-baselines3 skip the network where they explore. CleanRL's DQN plays one
game, since it can play no more. Peak memory is what was touched, and buffers fill up as a run goes on.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checks import step_parts
from prune_utils.basics import check, check_file, exit_codes
from prune_utils.device import cores, peak_ram_bytes

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "SpaceInvadersNoFrameskip-v4"
START_CLEANRL = "import ale_py, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass
class Args:
    algorithms: tuple[Literal["dqn", "ppo"], ...] = ("dqn", "ppo")
    """which algorithms to measure"""
    programs: tuple[Literal["ours", "old", "cleanrl", "sb3"], ...] = ("ours", "sb3")
    """which programs to measure; old needs --old, cleanrl needs --cleanrl"""
    old: Path | None = None
    """checkout of an earlier commit of this project: ratios are then to it"""
    rounds: int = 3
    """runs of each program; fewer than 3 say nothing of the spread"""
    limit: float | None = None
    """seconds after which no further run begins; what was measured until then is shown"""
    jobs: tuple[int, ...] = (1,)
    """how many runs of a program side by side, one figure each"""
    num_envs: int = 8
    """games played at once by this project and stable-baselines3 (and by CleanRL's PPO)"""
    num_threads: int = 0
    """CPU threads of a run; 0 is the cores divided by the runs side by side (CleanRL and stable-baselines3 alone: their own)"""
    precision: str = "auto"
    """number format of this project's runs, as its scripts take it"""
    steps: int = 8000
    """agent steps of a run of this project after learning starts (GPU: 60000)"""
    seconds: float = 15.0
    """how long the others are watched after their burn-in"""
    learning_starts: int = 2000
    """agent steps before a DQN's first update"""
    cleanrl: Path | None = None
    """checkout of CleanRL"""
    cleanrl_python: str = sys.executable
    """path of the Python that runs it"""
    bounds: bool = True
    """measure the start of a process and the parts of a step too, in each round, of a run alone"""
    csv: Path | None = None
    """file for the measurements, written anew after each"""
    json: Path | None = None
    """file for all measurements, the table and the bounds"""


def threads_each(args: Args, jobs: int) -> int:
    return args.num_threads or max(1, cores() // jobs)


def command(algorithm: str, args: Args, jobs: int) -> list[str]:
    """The command line of a run of this project, without its length."""
    words = [sys.executable, f"{algorithm}_atari_prune.py", "--env-id", ENV_ID, "--num-envs", str(args.num_envs)]
    words += ["--prune-type", "l1", "--prune-rate", "0.5", "--prune-at", "0", "--eval-episodes", "0"]
    words += ["--num-threads", str(threads_each(args, jobs)), "--precision", args.precision]
    dqn = ["--learning-starts", str(args.learning_starts), "--buffer-size", "100000", "--start-e", "0.01"]
    return words + dqn if algorithm == "dqn" else words


def laps(folder: Path) -> list:
    """The events of a run's speed, one per lap, each with its step and wall_time. All versions of the project have them."""
    return EventAccumulator(str(folder)).Reload().Scalars("charts/SPS")


def learning_speeds(runs: list[list], learning_starts: int) -> list[float] | None:
    """Agent steps per second of each of several runs side by side, by their laps while all of them learn.

    That time begins when the last run has ended its first lap of learning, and ends with the first run. None if a run has no
    whole lap in it.
    """
    learned = [[lap for lap in laps if lap.step > learning_starts] for laps in runs]
    if not all(learned):
        return None
    begin, end = max(laps[0].wall_time for laps in learned), min(laps[-1].wall_time for laps in learned)
    common = [[lap for lap in laps if begin <= lap.wall_time <= end] for laps in learned]
    if min(map(len, common)) < 2:
        return None
    return [(laps[-1].step - laps[0].step) / (laps[-1].wall_time - laps[0].wall_time) for laps in common]


def train(checkout: Path, algorithm: str, args: Args, jobs: int, scratch: str) -> tuple[list[str], list[float], dict]:
    """The command, the steps per second of each of several runs side by side, and their highest peaks of memory in bytes."""
    starts = args.learning_starts if algorithm == "dqn" else 0
    words = [*command(algorithm, args, jobs), "--total-timesteps", str(starts + args.steps), "--checkpoint-minutes", "0"]
    folders = [Path(scratch) / f"{algorithm}-{time.time_ns()}-{job}" for job in range(jobs)]
    runs = [
        subprocess.Popen(
            [*words, "--seed", str(seed), "--runs-dir", scratch, "--run-name", folder.name],
            cwd=checkout,
            stdout=subprocess.DEVNULL,
        )
        for seed, folder in enumerate(folders, 1)
    ]
    if any([run.wait() for run in runs]):
        raise SystemExit(f"error: failed: {' '.join(words)}")
    times = [json.loads((folder / "summary.json").read_text())["time"] for folder in folders]
    peaks = {name: max((t[name] for t in times if t[name]), default=None) for name in ("peak_ram_bytes", "peak_gpu_bytes")}
    speeds = learning_speeds([laps(folder) for folder in folders], starts)
    if speeds is None:
        raise SystemExit(f"error: --steps must be larger, got {args.steps}: the runs have no whole lap in common")
    return words, speeds, peaks


def start_up_seconds(checkout: Path, algorithm: str, args: Args, scratch: str) -> float:
    """Seconds from the start of a process to the end of its first lap.

    The lap is 1,000 agent steps of a DQN that does not learn yet, or a rollout of four steps.
    """
    folder = Path(scratch) / f"{algorithm}-{time.time_ns()}-start"
    words = [*command(algorithm, args, 1), "--no-save-model", "--runs-dir", scratch, "--run-name", folder.name]
    dqn = ["--total-timesteps", "1008", "--learning-starts", "1000"]
    words += dqn if algorithm == "dqn" else ["--total-timesteps", str(4 * args.num_envs), "--num-steps", "4"]
    began = time.time()
    subprocess.run(words, cwd=checkout, stdout=subprocess.DEVNULL, check=True)
    return laps(folder)[0].wall_time - began


def watch(
    words: list[str], environment: dict, pattern: str, steps_per_line: int, seconds: float, scratch: str, jobs: int
) -> tuple[list[str], list[float], dict]:
    """As `train`, for a program that prints a line each steps_per_line agent steps. The speed is the slope over its lines.

    All processes run until each was watched for so many seconds, counted from when all of them have printed four lines.
    """
    processes = [
        subprocess.Popen(
            words, cwd=scratch, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(jobs)
    ]
    arrivals: list[list[float]] = [[] for _ in processes]
    outputs: list[list[str]] = [[] for _ in processes]

    def listen(job: int) -> None:
        for line in processes[job].stdout:
            outputs[job].append(line)
            if re.search(pattern, line):
                arrivals[job].append(time.perf_counter())

    def watched() -> list[list[float]]:
        """The arrivals of each process, from when all of them have printed four lines."""
        begin = max(times[3] if len(times) > 3 else math.inf for times in arrivals)
        return [[t for t in times if t >= begin] for times in arrivals]

    listeners = [threading.Thread(target=listen, args=(job,)) for job in range(jobs)]
    for listener in listeners:
        listener.start()
    while all(t.is_alive() for t in listeners) and not all(t and t[-1] - t[0] > seconds for t in watched()):
        time.sleep(0.05)
    peaks = {"peak_ram_bytes": max(filter(None, (peak_ram_bytes(process.pid) for process in processes)), default=None)}
    for process in processes:
        process.kill()
        process.wait()
    for listener in listeners:
        listener.join()
    for times, output in zip(watched(), outputs, strict=True):
        if len(times) < 2:
            raise SystemExit(f"error: no steps came from {' '.join(words)}:\n{''.join(output[-15:])}")
    return words, [steps_per_line * (len(times) - 1) / (times[-1] - times[0]) for times in watched()], peaks


def cleanrl(algorithm: str, args: Args, scratch: str, jobs: int) -> tuple[list[str], list[float], dict]:
    checkout = args.cleanrl.resolve()
    words = [
        os.path.abspath(args.cleanrl_python),
        "-c",
        START_CLEANRL,
        f"{checkout}/cleanrl/{algorithm}_atari.py",
        "--env-id",
        ENV_ID,
    ]
    dqn = ["--learning-starts", str(args.learning_starts), "--buffer-size", "100000", "--start-e", "0.01"]
    words += dqn if algorithm == "dqn" else ["--num-envs", str(args.num_envs)]
    environment = {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    if args.num_threads or jobs > 1:
        environment["OMP_NUM_THREADS"] = str(threads_each(args, jobs))
    return watch(words, environment, "^SPS:", 100 if algorithm == "dqn" else 128 * args.num_envs, args.seconds, scratch, jobs)


def sb3(algorithm: str, args: Args, scratch: str, jobs: int) -> tuple[list[str], list[float], dict]:
    threads = threads_each(args, jobs) if jobs > 1 else args.num_threads
    words = [sys.executable, "-m", "checks.train_sb3", algorithm, "--env-id", ENV_ID, "--num-envs", str(args.num_envs)]
    words += ["--learning-starts", str(args.learning_starts), "--num-threads", str(threads)]
    return watch(words, {"PYTHONPATH": str(ROOT)}, "^stepped", 128 * args.num_envs, args.seconds, scratch, jobs)


def measure(program: str, algorithm: str, jobs: int, args: Args, scratch: str) -> dict:
    """A row: what a program does in one round."""
    checkout = {"ours": ROOT, "old": args.old}.get(program)
    if checkout:
        words, speeds, peaks = train(checkout.resolve(), algorithm, args, jobs, scratch)
    else:
        words, speeds, peaks = {"cleanrl": cleanrl, "sb3": sb3}[program](algorithm, args, scratch, jobs)
    row = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "cores": cores()}
    row |= {"program": program, "algorithm": algorithm, "side_by_side": jobs, "steps_per_second": round(sum(speeds), 1)}
    row |= {"num_envs": 1 if (program, algorithm) == ("cleanrl", "dqn") else args.num_envs}
    row |= {"peak_ram_bytes": None, "peak_gpu_bytes": None} | peaks
    if checkout and jobs == 1 and args.bounds:
        row["start_up_seconds"] = round(start_up_seconds(checkout.resolve(), algorithm, args, scratch), 2)
    return row | {"command": " ".join(Path(w).name if os.sep in w else f"'{w}'" if " " in w else w for w in words)}


def measure_bound(algorithm: str, row: dict, args: Args) -> dict:
    """The parts of a step of all games, and the whole step that was just measured, in microseconds."""
    us = step_parts.parts(step_parts.Args(algorithm, ENV_ID, args.num_envs, threads_each(args, 1), args.precision))
    us |= {"bound": step_parts.bound(algorithm, us, torch.cuda.is_available())}
    us |= {"step": row["num_envs"] / row["steps_per_second"] * 1e6}
    return us | {"bound / step": us["bound"] / us["step"], "mask / update": us["mask"] / us["update"]}


def compare(frame: pd.DataFrame, column: str, base: str | None) -> pd.DataFrame:
    """Median and range of a column for each program, and its ratios to the base program round by round."""
    keys = ["algorithm", "program", "side_by_side"]
    frame = frame.dropna(subset=column)
    table = frame.groupby(keys)[column].agg(["count", "median", "min", "max"])
    if base in set(frame.program):
        rounds = frame.pivot(index="repetition", columns=keys, values=column)
        bases = {key: (key[0], base, key[2]) for key in rounds.columns if (key[0], base, key[2]) in rounds}
        ratios = pd.DataFrame({key: rounds[key] / rounds[other] for key, other in bases.items()})
        for name in ("median", "min", "max"):
            table[f"{name} ratio to {base}"] = ratios.agg(name)
        if base == "old":
            medians = table["median"]
            table["ratio of medians"] = pd.Series({key: medians[key] / medians[other] for key, other in bases.items()})
    return table


def main(args: Args) -> None:
    for program, folder in {"old": args.old, "cleanrl": args.cleanrl}.items():
        there = program not in args.programs or (folder is not None and folder.is_dir())
        check(there, program, f"be a checkout where --programs has {program}", folder)
    for name in ("rounds", "num_envs", "steps", "seconds"):
        check(getattr(args, name) > 0, name, "be above 0", getattr(args, name))
    for name in ("programs", "algorithms", "jobs"):
        values = getattr(args, name)
        check(len(set(values)) == len(values) > 0, name, "name each value once", " ".join(map(str, values)) or "nothing")
    check(min(args.jobs) > 0, "jobs", "be above 0", min(args.jobs))
    for name in ("csv", "json"):
        if getattr(args, name):
            check_file(name, getattr(args, name))
    rounds = range(1, args.rounds + 1)
    plan = [(k, a, jobs, p) for k in rounds for a in args.algorithms for jobs in args.jobs for p in args.programs]
    rows, bounds, failed, began = [], [], set(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        for repetition, algorithm, jobs, program in plan:
            if rows and args.limit is not None and time.monotonic() - began > args.limit:
                print(f"the limit of {args.limit:g} s is reached after {len(rows)} of {len(plan)} measurements", flush=True)
                break
            if (algorithm, jobs, program) in failed:
                continue
            try:
                row = measure(program, algorithm, jobs, args, scratch) | {"repetition": repetition}
            except (SystemExit, Exception) as error:  # the others are measured all the same
                failed.add((algorithm, jobs, program))
                print(f"{program} {algorithm} x{jobs} failed: {error}", file=sys.stderr, flush=True)
                continue
            rows.append(row)
            if args.csv:
                pd.DataFrame(rows).to_csv(args.csv, index=False)
            print(f"{repetition}: {program} {algorithm} x{jobs}: {row['steps_per_second']:.0f} steps/s", flush=True)
            if program == "ours" and jobs == 1 and args.bounds and "old" not in args.programs:
                us = measure_bound(algorithm, row, args)
                bounds.append({"algorithm": algorithm, "repetition": repetition} | us)
    if not rows:
        sys.exit(1)
    frame = pd.DataFrame(rows)
    base = next((program for program in ("old", "cleanrl", "sb3") if program in args.programs), None)
    table = compare(frame, "steps_per_second", base)
    for kind in ("ram", "gpu"):
        table[f"peak_{kind}_GB"] = frame.groupby(table.index.names)[f"peak_{kind}_bytes"].max().astype(float) / 1e9
    print(f"\nagent steps per second of {frame.repetition.max()} rounds\n\n{table.round(3).to_string()}")
    if "start_up_seconds" in frame:
        print("\nseconds from the start of a process to the end of its first lap (DQN: 1,000 steps, PPO: a rollout of four)\n")
        print(compare(frame, "start_up_seconds", "old").round(3).to_string())
    if bounds:
        print("\nmicroseconds: an update, its mask, and each part alone of a step of all games; median (range) of the rounds\n")
        by_round = pd.DataFrame(bounds).set_index(["algorithm", "repetition"]).groupby("algorithm")
        show = by_round.agg(
            lambda x: "{} ({}-{})".format(*(f"{v:.3f}" if v < 10 else f"{v:,.0f}" for v in x.quantile([0.5, 0, 1])))
        )
        print(show.T.to_string())
    if args.json:
        records = json.loads(table.reset_index().to_json(orient="records"))  # null where nothing was measured, not NaN
        args.json.write_text(json.dumps({"rows": rows, "table": records, "bounds": bounds}, indent=2))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    with exit_codes():
        main(tyro.cli(Args, prog="python -m checks.benchmark", description=__doc__))
