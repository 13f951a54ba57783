"""Print the commands of a sweep, after checking them, and say what they cost. scripts/sweep.sh explains the variables.

    SEEDS="1 2" RATES="0.5" python -m checks.plan_sweep ppo [OPTION OF EVERY RUN]...

The first line of standard output has the number of runs side by side, the GPUs to use (`-` for none) and, with --track, the
command for their dashboard. Each line after it is a run: its name, the name of its dense run, and its command. Commands of
phase one end in --until-cut.
"""

import json
import math
import os
import shlex
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

import dqn_atari_prune
import ppo_atari_prune
from prune_utils.basics import UserError, exit_codes, parse_options, say
from prune_utils.device import cores, memory, resolve, uses_cuda
from prune_utils.run import CRITERIA, default_run_name, read_config

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
VARIABLES = {"seed": "SEEDS", "prune_rate": "RATES", "prune_type": "TYPES", "env_id": "GAMES", "runs_dir": "RUNS_DIR"}
VARIABLES |= {"fork_seed": "FORKS or AA"} | dict.fromkeys(("run_name", "fork_from", "until_cut"), "the sweep itself")
REFUSED = {option: f"it is set by {variable}" for option, variable in VARIABLES.items()}
REFUSED |= {"overwrite": "arms would fork from a run that starts anew; take another RUNS_DIR or delete the runs"}
SET_BY_SWEEP = ("runs_dir", "env_id", "seed", "num_threads", "prune_type", "prune_rate", "prune_cuts", "fork_from", "fork_seed")
CUTS = 8
"""of a gradual arm"""
RUN_BYTES = 1.0e9
"""memory of a run of the default number of games, beside its replay buffer"""
BUFFER_FACTOR = 1.2
"""peak memory per byte of replay buffer: the DQNs of results/study peak at 9.2 to 9.5 GB, with a buffer of 7.06 GB"""
RUNS_PER_GPU = 8
RESULTS = Path(__file__).resolve().parents[1] / "results"


# ------------------------------------------------------------------------------------------------- environment variables
def words(variable: str, default: str, kind: type = str) -> list:
    """The words of a variable as values of a kind. An empty variable has its default."""
    text = os.environ.get(variable) or default
    try:
        values = [kind(word) for word in text.split()]
    except ValueError:
        values = []
    if not values:
        rule = {str: "names", int: "whole numbers", float: "numbers"}[kind]
        raise UserError(f"{variable} must be {rule} separated by spaces, got {text}")
    return values


def number(variable: str, flag: bool = False) -> int:
    """A variable that is one whole number, at least 0 (its default). A flag is 0 or 1."""
    text = os.environ.get(variable) or "0"
    allowed = text in ("0", "1") if flag else text.isdecimal() and len(text) <= 6
    if not allowed:
        raise UserError(f"{variable} must be {'0 or 1' if flag else 'a whole number below a million'}, got {text}")
    return int(text)


def read_variables(args) -> dict:
    """The matrix: seeds, games, rates, types, each value checked as the training script would check it."""
    meant = {"RUN_DIR": "RUNS_DIR", "DRYRUN": "DRY_RUN"}
    meant |= {name: f"{name}S" for name in ("SEED", "RATE", "TYPE", "GAME", "FORK")}
    for variable, name in meant.items():
        if variable in os.environ:
            raise UserError(f"{variable} must be written {name}, got {variable}={os.environ[variable]}")
    if args.track and "WANDB_RUN_ID" in os.environ:
        raise UserError("WANDB_RUN_ID must not be set for a sweep with --track: all its runs would be this one")
    rates = words("RATES", str(args.prune_rate), float)
    matrix = {"seed": words("SEEDS", "1", int), "prune_rate": rates, "env_id": words("GAMES", args.env_id)}
    for option, values in matrix.items():
        for value in values:
            try:
                replace(args, **{option: value})
            except UserError as error:
                raise UserError(f"{VARIABLES[option]}: {error}") from None
    types = words("TYPES", "l1 random")
    if unknown := set(types) - set(CRITERIA):
        raise UserError(f"TYPES must be words of {' '.join(CRITERIA)}, got {' '.join(sorted(unknown))}")
    return matrix | {"prune_type": types}


# --------------------------------------------------------------------------------------------------------------- the runs
def make_runs(args, matrix: dict, forks: int, aa: bool, gradual: bool) -> list[tuple]:
    """Each run with the name of its dense run. Each seed has its dense run first, then its A/A arms, then every other arm."""
    criteria = [(prune_type, args.prune_cuts) for prune_type in matrix["prune_type"]]
    criteria += [(prune_type, CUTS) for prune_type, _ in criteria if gradual and not prune_type.endswith("-structured")]
    runs = []
    for seed in matrix["seed"]:
        for env_id in matrix["env_id"]:
            dense = replace(args, seed=seed, env_id=env_id, prune_type="none")
            name = default_run_name(dense)
            fork = replace(dense, fork_from=str(Path(args.runs_dir) / name))
            fork_seeds = list(range(1, forks + 1))
            arms = [replace(fork, fork_seed=k) for k in fork_seeds or [1] * aa]
            for rate in matrix["prune_rate"]:
                for prune_type, cuts in criteria:
                    for k in fork_seeds or [None]:
                        arms.append(replace(fork, prune_type=prune_type, prune_rate=rate, prune_cuts=cuts, fork_seed=k))
            runs += [(run, name) for run in (dense, *arms)]
    names = [default_run_name(run) for run, _ in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"SEEDS, RATES, TYPES and GAMES must give each run once; {sorted(twice)[0]} is there twice")
    return runs


def line(run, dense: str, script: str, options: list[str], until_cut: bool = False) -> str:
    """The name of a run, the name of its dense run, its command."""
    name = default_run_name(run)
    values = {"run_name": name} | {option: getattr(run, option) for option in SET_BY_SWEEP}
    if run.prune_type == "none":
        values["prune_rate"] = values["prune_cuts"] = None
    elif run.prune_cuts == 1:
        values["prune_cuts"] = None
    flags = [(f"--{option.replace('_', '-')}", str(value)) for option, value in values.items() if value is not None]
    command = [sys.executable, script, *options, *(word for flag in flags for word in flag), *["--until-cut"] * until_cut]
    return f"{name} {dense} {shlex.join(command)}"


def dashboard(args, games: list[str]) -> list[str]:
    """The words of the command for the W&B view and report of tracked runs; none where they are not tracked."""
    if not args.track:
        return []
    command = [sys.executable, "scripts/wandb_dashboard.py", "--project", args.wandb_project_name, "--games", *games]
    return command + (["--entity", args.wandb_entity] if args.wandb_entity else [])


# --------------------------------------------------------------------------------------------------------------- the cost
def speed(algorithm: str, args, gpus: int) -> tuple[float | None, str]:
    """Agent steps per second of each of several runs side by side, and from which runs this is known.

    Finished runs of the same network and precision in --runs-dir count. Where there are none, a CPU has the benchmark's.
    """
    precision = resolve(args.cuda, "auto", 0, {})["precision"] if args.precision == "auto" else args.precision
    speeds = []
    for file in Path(args.runs_dir).glob("*/summary.json"):
        with suppress(ValueError, KeyError, TypeError):  # a broken one, which the report names
            config, time = read_config(file.parent), json.loads(file.read_text())["time"]
            options = {"width": 1.0} | config["options"]
            same = config["algorithm"] == algorithm and config["resolved"]["precision"] == precision
            same = same and all(options[name] == getattr(args, name) for name in ("width", "hidden_size"))
            if same and not options["prune_type"].endswith("-structured"):
                speeds.append(float(time["agent_steps_per_second_while_learning"]))
    if speeds := [speed for speed in speeds if speed > 0]:
        runs = f"{len(speeds)} finished {'run' if len(speeds) == 1 else 'runs'} of the same network and precision"
        return sum(speeds) / len(speeds), f"at the speed of {runs} in {args.runs_dir}"
    measured = RESULTS / f"cpu_speed_{precision}.json"
    slow = precision == "bf16" and not torch.cpu._is_avx512_bf16_supported()
    if gpus or slow or not measured.exists():
        return None, ""
    rows = json.loads(measured.read_text())["rows"]
    rows = [row for row in rows if (row["program"], row["algorithm"]) == ("ours", algorithm) and row["side_by_side"] > 1]
    speeds = [row["steps_per_second"] / row["side_by_side"] for row in rows]
    return sum(speeds) / len(speeds), f"at the speed in results/{measured.name}"


def plan(algorithm: str, options: list[str]) -> None:
    for word in options:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in REFUSED:
            raise UserError(f"{word} can't be an option of every run: {REFUSED[name]}")
    script = SCRIPTS[algorithm]
    args = replace(parse_options(script.Args, script.__doc__, options), runs_dir=os.environ.get("RUNS_DIR") or "runs")
    jobs, forks, aa, dry_run = number("JOBS"), number("FORKS"), bool(number("AA", flag=True)), number("DRY_RUN", flag=True)
    gradual = bool(number("GRADUAL", flag=True))
    if gradual and any(word.replace("_", "-").startswith("--prune-cuts") for word in options):
        raise UserError(f"--prune-cuts can't be an option of every run with GRADUAL=1, which adds arms of {CUTS} cuts")

    # names hold the threads: they depend on options, cores and GPUs, never on what is free now
    gpus = torch.cuda.device_count() if uses_cuda(args.cuda) else 0
    args.num_threads = args.num_threads or (max(1, cores() // (RUNS_PER_GPU * gpus)) if gpus else 1)
    matrix = read_variables(args)
    types = matrix["prune_type"]
    unstructured = [prune_type for prune_type in types if not prune_type.endswith("-structured")]
    if gradual and not unstructured:
        raise UserError(f"GRADUAL must be 0 where TYPES has no unstructured type, got TYPES={' '.join(types)}")
    runs = make_runs(args, matrix, forks, aa, gradual)
    dense = [(run, name) for run, name in runs if run.fork_from is None]

    buffer = args.buffer_size * dqn_atari_prune.TRANSITION_BYTES if algorithm == "dqn" else 0
    per_run = RUN_BYTES + BUFFER_FACTOR * buffer
    free, total = torch.cuda.mem_get_info() if gpus else memory()
    too_small = total < per_run and not (jobs or gpus or dry_run)
    places = max(1, gpus)  # with that much free memory each
    each = min(RUNS_PER_GPU if gpus else cores(), int(free // per_run))
    jobs = jobs or max(places, min(places * each, cores() // args.num_threads))

    steps = args.total_timesteps // args.steps_per_iteration * args.steps_per_iteration
    cut = script.cut_iterations(args)[0] * args.steps_per_iteration
    arms = len(runs) - len(dense)
    in_all = len(runs) * steps - arms * cut
    steps_per_second, source = speed(algorithm, args, gpus)
    hours = "hours unknown: no speed has been measured here"
    if steps_per_second:
        longest = math.ceil(len(dense) / jobs) * cut + math.ceil(len(runs) / jobs) * (steps - cut)  # steps one after another
        minutes = longest / steps_per_second / 60
        hours = f"about {minutes / 60:.1f} hours {source}" if minutes >= 60 else f"about {minutes:.0f} minutes {source}"
    at_once = min(jobs, len(runs))
    checkpoint = 30e6 + buffer / 20  # frames of SpaceInvaders compress 20-fold and more
    disk = (3 * len(dense) + 2 * at_once) * checkpoint + 11e6 * len(runs)  # prune points and two checkpoints; models
    existing = next(path for path in (Path(args.runs_dir), *Path(args.runs_dir).absolute().parents) if path.exists())
    if not dry_run and not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UserError(f"RUNS_DIR must be a folder that can be written, got {args.runs_dir}")
    rates = " ".join(f"{rate:g}" for rate in matrix["prune_rate"])
    matrix_in_words = f"seeds {' '.join(map(str, matrix['seed']))}; {' '.join(types)} at {rates}"
    matrix_in_words += f"; {' '.join(unstructured)} in {CUTS} cuts until {args.prune_until:g} too" * gradual
    finished = sum((Path(args.runs_dir) / default_run_name(run) / "summary.json").exists() for run, _ in runs)
    counted = f" ({finished} finished, counted too)" * bool(finished)
    say(
        f"{matrix_in_words}; {len(runs)} runs{counted} of {steps:,} agent steps, "
        f"{arms} of them forked at {cut:,}: {in_all:,} agent steps; "
        "phase one are the commands that end in --until-cut, phase two all others; "
        f"{at_once} side by side, threads {args.num_threads}; {hours}; "
        f"memory {at_once * per_run / 1e9:.1f} GB of {places * free / 1e9:.1f} GB, "
        f"disk {disk / 1e9:.1f} GB of {shutil.disk_usage(existing).free / 1e9:.0f} GB",
        error=True,
    )
    if too_small:
        smaller = ": take a smaller --buffer-size" if buffer else ""
        raise OSError(
            f"one run needs about {per_run / 1e9:.1f} GB of memory, and this machine or its cgroup has {total / 1e9:.1f} GB"
            f"{smaller}; JOBS=1 tries it all the same"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    visible = ",".join(word.strip() for word in visible.split(",")[:gpus])  # CUDA stops at the first that is not there
    print(shlex.join([str(jobs), visible if gpus else "-", *dashboard(args, matrix["env_id"])]))
    file = f"{algorithm}_atari_prune.py"
    print("\n".join(line(run, name, file, options, until_cut=True) for run, name in dense))
    print("\n".join(line(run, name, file, options) for run, name in runs))


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads on where the sweep was killed: no traceback for that
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        asked = "--help" in sys.argv
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    algorithm, *options = sys.argv[1:]
    sys.argv[0] = f"{algorithm}_atari_prune.py"  # whose options these are, in messages
    with exit_codes():
        plan(algorithm, options)


if __name__ == "__main__":
    main()
