"""Agent steps per second while learning: this project, CleanRL and stable-baselines3 in turn, and how near the bound they are.

    python scripts/benchmark.py --cleanrl ~/cleanrl --cleanrl-python ~/cleanrl/.venv/bin/python --json speed.json
    python scripts/benchmark.py --programs ours --jobs 1 2 4 --algorithms dqn

Programs run in turn, A B C A B C, each in a process of its own, with CleanRL's hyperparameters and `--learning-starts` lowered
for all alike; burn-in is left out. DQN explores with epsilon 0.01 from the start, as in nine tenths of its training: CleanRL
and stable-baselines3 skip the network where they explore. CleanRL's DQN plays one game at a time, as it must. Peak memory is
what was touched: buffers fill up as a run goes on.
"""

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import dqn_atari_prune
import ppo_atari_prune

ENV_ID = "SpaceInvadersNoFrameskip-v4"
START = "import ale_py, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass
class Args:
    algorithms: tuple[Literal["dqn", "ppo"], ...] = ("dqn", "ppo")
    """which algorithms to measure"""
    programs: tuple[Literal["ours", "cleanrl", "sb3"], ...] = ("ours", "cleanrl", "sb3")
    """which programs to measure; CleanRL only with --cleanrl"""
    rounds: int = 3
    """runs of each program; fewer than 3 say nothing of the spread"""
    jobs: tuple[int, ...] = (1,)
    """for this project's scripts: how many runs side by side, one figure each"""
    num_envs: int = 8
    """games played at once by this project and stable-baselines3 (and by CleanRL's PPO)"""
    num_threads: int = 0
    """CPU threads of a run; 0 is the cores divided by the runs side by side"""
    steps: int = 8000
    """agent steps of a run of this project after learning starts (GPU: 60000)"""
    seconds: float = 15.0
    """how long the others are watched after their burn-in"""
    learning_starts: int = 2000
    """agent steps before a DQN's first update"""
    cleanrl: Path | None = None
    """checkout of CleanRL"""
    cleanrl_python: str = sys.executable
    """python that runs it"""
    json: Path | None = None
    """file for all measurements, the table and the bounds"""
    sb3: Literal["dqn", "ppo"] | None = None
    """train stable-baselines3 here and print its steps: what this program starts as a process of its own"""


def threads_each(args: Args, jobs: int) -> int:
    return args.num_threads or max(1, len(os.sched_getaffinity(0)) // jobs)


def ours(algorithm: str, args: Args, jobs: int, scratch: str) -> tuple[list[str], list[float], dict]:
    """Command of the first, steps per second of each of several runs side by side, and the peaks of memory of one in bytes."""
    steps = args.steps + (args.learning_starts if algorithm == "dqn" else 0)
    words = [sys.executable, str(ROOT / f"{algorithm}_atari_prune.py"), "--total-timesteps", str(steps)]
    words += ["--prune-type", "l1", "--prune-rate", "0.5", "--eval-episodes", "0", "--num-envs", str(args.num_envs)]
    words += ["--num-threads", str(threads_each(args, jobs)), "--checkpoint-minutes", "0", "--env-id", ENV_ID]
    if algorithm == "dqn":
        words += ["--learning-starts", str(args.learning_starts), "--buffer-size", "100000", "--start-e", "0.01"]
    folders = [Path(scratch) / f"{algorithm}-{time.time_ns()}-{job}" for job in range(jobs)]
    runs = [
        subprocess.Popen(
            [*words, "--seed", str(job), "--runs-dir", scratch, "--run-name", folder.name], stdout=subprocess.DEVNULL
        )
        for job, folder in enumerate(folders, 1)
    ]
    if any([run.wait() for run in runs]):
        raise SystemExit(f"error: failed: {' '.join(words)}")
    times = [json.loads((folder / "summary.json").read_text())["time"] for folder in folders]
    peaks = {name: max((t[name] for t in times if t[name]), default=None) for name in ("peak_ram_bytes", "peak_gpu_bytes")}
    speeds = [t["agent_steps_per_second_while_learning"] for t in times]
    if None in speeds:
        print(f"error: --steps must be several thousand, got {args.steps}: no lap of learning was whole", file=sys.stderr)
        sys.exit(2)
    return words, speeds, peaks


def watched(
    words: list[str], env: dict, pattern: str, steps_per_line: int, seconds: float
) -> tuple[list[str], list[float], dict]:
    """The same of a program that prints a line each steps_per_line agent steps: the slope over its lines after three."""
    process = subprocess.Popen(words, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    arrivals, output = [], []
    for line in process.stdout:
        output.append(line)
        if re.search(pattern, line):
            arrivals.append(time.perf_counter())
            if len(arrivals) > 4 and arrivals[-1] - arrivals[3] > seconds:
                break
    peaks = {"peak_ram_bytes": dqn_atari_prune.peak_ram_bytes(process.pid)}
    process.kill()
    process.wait()
    if len(arrivals) < 5:
        raise SystemExit(f"error: no steps came from {' '.join(words)}:\n{''.join(output[-15:])}")
    return words, [steps_per_line * (len(arrivals) - 4) / (arrivals[-1] - arrivals[3])], peaks


def cleanrl(algorithm: str, args: Args) -> tuple[list[str], list[float], dict]:
    words = [args.cleanrl_python, "-c", START, f"{args.cleanrl}/cleanrl/{algorithm}_atari.py", "--env-id", ENV_ID]
    dqn = ["--learning-starts", str(args.learning_starts), "--buffer-size", "100000", "--start-e", "0.01"]
    words += dqn if algorithm == "dqn" else ["--num-envs", str(args.num_envs)]
    env = {"PYTHONPATH": str(args.cleanrl), "PYTHONUNBUFFERED": "1"}
    if args.num_threads:
        env["OMP_NUM_THREADS"] = str(args.num_threads)
    return watched(words, env, "^SPS:", 100 if algorithm == "dqn" else 128 * args.num_envs, args.seconds)


def sb3(algorithm: str, args: Args) -> tuple[list[str], list[float], dict]:
    words = [sys.executable, __file__, "--sb3", algorithm, "--num-envs", str(args.num_envs)]
    words += ["--learning-starts", str(args.learning_starts), "--num-threads", str(args.num_threads)]
    return watched(words, {"PYTHONUNBUFFERED": "1"}, "^stepped", 128 * args.num_envs, args.seconds)


def train_sb3(args: Args) -> None:
    """Stable-baselines3 with CleanRL's hyperparameters; a line each 128 steps of all games once it learns."""
    import ale_py  # registers the games
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    assert ale_py
    if args.num_threads:
        torch.set_num_threads(args.num_threads)

    class Lines(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 128 == 0 and self.num_timesteps > (args.learning_starts if args.sb3 == "dqn" else 0):
                print("stepped")
            return True

    env = VecFrameStack(make_atari_env(ENV_ID, n_envs=args.num_envs, seed=1), 4)
    shared = {"policy": "CnnPolicy", "env": env, "seed": 1}
    if args.sb3 == "dqn":
        updates = max(1, args.num_envs // 4)
        every = {"train_freq": max(1, 4 // args.num_envs), "gradient_steps": updates, "target_update_interval": 1000}
        memory = {"buffer_size": 100_000, "optimize_memory_usage": True}  # as CleanRL's, of the same class
        memory["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
        explore = {"exploration_initial_eps": 0.01, "exploration_final_eps": 0.01, "learning_starts": args.learning_starts}
        model = DQN(**shared, **every, **memory, **explore, learning_rate=1e-4, batch_size=32)
    else:
        losses = {"clip_range": 0.1, "clip_range_vf": 0.1, "ent_coef": 0.01, "vf_coef": 0.5}
        model = PPO(**shared, **losses, n_steps=128, batch_size=32 * args.num_envs, n_epochs=4, learning_rate=2.5e-4)
    model.learn(10**8, callback=Lines())


def parts(algorithm: str, args: Args) -> dict[str, float]:
    """Microseconds a step of all games of each part alone: emulator, acting, learning (its passes through the network), and of
    one whole update and the mask of its gradients; on a GPU as graph replays."""
    script = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}[algorithm]
    options = script.Args(num_threads=threads_each(args, args.jobs[0]))
    resolved = script.resolve(options, {})
    device, n = torch.device(resolved["device"]), args.num_envs
    torch.set_num_threads(resolved["num_threads"])
    torch.set_flush_denormal(True)
    games = script.AtariGames(ENV_ID, n, 1, resolved["num_threads"])
    network = (script.QNetwork if algorithm == "dqn" else script.Agent)(games.num_actions)
    network = network.to(device, memory_format=torch.channels_last)
    dtype = torch.bfloat16 if resolved["precision"] == "bf16" else torch.float32
    working, optimizer = script.working_copy(network, dtype), script.make_adam(network, 1e-4, 1e-8)
    alone, target = copy.deepcopy(working), copy.deepcopy(working)  # passes alone: no gradient goes on to master weights
    state = {"network": network, "working": [(working, network)], "optimizer": optimizer, "generators": []}
    state |= {"device": device.type}
    masks = script.make_masks(script.prunable(network), "l1", 0.5, "layer", seed=1)
    rng = np.random.default_rng(0)

    def frames(batch: int) -> torch.Tensor:
        obs = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, device=device)
        return obs.contiguous(memory_format=torch.channels_last)

    def forward(network, obs: torch.Tensor):
        with torch.no_grad():
            return network(obs)

    def backward(obs: torch.Tensor) -> None:
        out = alone(obs)
        sum(t.square().mean() for t in (out if isinstance(out, tuple) else (out,))).backward()
        alone.zero_grad()

    def microseconds(function, repeats: int) -> float:
        for _ in range(3):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats * 1e6

    def step() -> None:
        games.send(rng.integers(0, games.num_actions, n))
        games.receive()

    if algorithm == "dqn":  # train_frequency 4, batch 32: the targets of the updates that one step asks for are one pass
        at_once = max(1, n // 4)
        following, batches = frames(32 * at_once), [frames(32) for _ in range(at_once)]
        learn, share = (lambda: [forward(target, following), *map(backward, batches)]), n / 4 / at_once
        actions, numbers = (torch.zeros(32, dtype=kind, device=device) for kind in (torch.int64, torch.float32))
        batch = (batches[0], actions, numbers, frames(32), numbers.bool())
        update = partial(script.update, network, working, target, optimizer, masks, batch, 32, 0.99)
    else:  # 4 epochs of 4 minibatches a rollout of 128 steps
        minibatch = script.scaled(frames(32 * n), dtype)
        learn, share = partial(backward, minibatch), 16 / 128
        actions, numbers = (torch.zeros(32 * n, dtype=kind, device=device) for kind in (torch.int64, torch.float32))
        update = partial(script.update, network, working, optimizer, masks, (minibatch, actions, *[numbers] * 4), options)
    acting = torch.from_numpy(games.obs).to(device)  # as the emulator hands them over
    repeats = 300 if device.type == "cuda" else 20
    return {
        "update": microseconds(script.capture(update, state), repeats),
        "mask": microseconds(script.capture(partial(script.mask_gradients, network, masks), state), 1000),
        "emulator": microseconds(step, 1000 if device.type == "cuda" else 200),
        "acting": microseconds(script.capture(partial(forward, alone, acting), state), repeats),
        "learning": microseconds(script.capture(learn, state), repeats) * share,
    }


def bound(algorithm: str, us: dict[str, float], cuda: bool) -> float:
    """Microseconds below which a step of all games cannot come: its parts in turn, but for DQN's learning on a GPU, during
    which the emulator's threads have the CPU for themselves."""
    if cuda and algorithm == "dqn":
        return us["acting"] + max(us["emulator"], us["learning"])
    return us["emulator"] + us["acting"] + us["learning"]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.sb3:
        return train_sb3(args)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    programs = [p for p in args.programs if p != "cleanrl" or args.cleanrl]
    plan = [(a, p, jobs) for a in args.algorithms for p in programs for jobs in (args.jobs if p == "ours" else (1,))]
    rows, bounds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for repetition in range(1, args.rounds + 1):
            for algorithm, program, jobs in plan:
                measure = {"cleanrl": cleanrl, "sb3": sb3}.get(program)
                words, speeds, peaks = measure(algorithm, args) if measure else ours(algorithm, args, jobs, scratch)
                envs = 1 if (program, algorithm) == ("cleanrl", "dqn") else args.num_envs
                row = {"device": device, "cores": len(os.sched_getaffinity(0)), "program": program, "algorithm": algorithm}
                row |= {"num_envs": envs, "side_by_side": jobs, "steps_per_second": round(sum(speeds), 1)}
                row |= {"peak_ram_bytes": None, "peak_gpu_bytes": None} | peaks | {"repetition": repetition}
                command = " ".join(Path(w).name if os.sep in w else f"'{w}'" if " " in w else w for w in words)
                rows.append(row | {"command": command})
                print(f"{repetition}: {program} {algorithm} x{jobs}: {sum(speeds):.0f} steps/s", flush=True)
                if program == "ours" and jobs == args.jobs[0]:
                    us = parts(algorithm, args)
                    us |= {"bound": bound(algorithm, us, torch.cuda.is_available()), "step": envs / sum(speeds) * jobs * 1e6}
                    us |= {"bound / step": us["bound"] / us["step"], "mask / update": us["mask"] / us["update"]}
                    bounds.append({"algorithm": algorithm, "repetition": repetition} | us)
    frame = pd.DataFrame(rows)
    keys = ["algorithm", "program", "side_by_side"]
    table = frame.groupby(keys).steps_per_second.agg(["median", "min", "max"])
    for kind in ("ram", "gpu"):
        table[f"peak_{kind}_GB"] = frame.groupby(keys)[f"peak_{kind}_bytes"].max() / 1e9
    speed = frame.pivot(index="repetition", columns=keys, values="steps_per_second")
    base = next((p for p in ("cleanrl", "sb3") if p in programs), None)
    if base:  # round by round: what drifts over a round drifts for all
        ratios = pd.DataFrame({key: speed[key] / speed[(key[0], base, 1)] for key in speed.columns})
        for name in ("median", "min", "max"):
            table[f"{name} ratio to {base}"] = ratios.agg(name)
    print(table.round(2).to_string())
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


if __name__ == "__main__":
    main()
