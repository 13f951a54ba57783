"""Small real runs on SpaceInvaders, each trained once per session and shared by the tests that look at it."""

import csv
import gc
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import dqn_atari_prune
import ppo_atari_prune
from prune_utils.basics import Busy

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
COMMON = {"num_envs": 2, "hidden_size": 64, "width": 0.25, "eval_episodes": 1, "num_threads": 1, "precision": "fp32"}
SMALL = {
    "dqn": COMMON
    | {"total_timesteps": 2200, "learning_starts": 900, "buffer_size": 700, "target_network_frequency": 200, "batch_size": 8},
    "ppo": COMMON | {"total_timesteps": 1024, "update_epochs": 2},
}
"""DQN: a ring that wraps and 325 updates, the cut after 50; PPO: 4 rollouts of 8 updates, the cut after the second"""
SHORT = {
    "dqn": {"total_timesteps": 240, "learning_starts": 20, "buffer_size": 100, "target_network_frequency": 20},
    "ppo": {"total_timesteps": 160, "num_steps": 8, "update_epochs": 1},
}
"""with SMALL, runs of a second without an evaluation: DQN 55 updates, PPO 10 rollouts of 4"""
SHORT = {algorithm: SMALL[algorithm] | {"eval_episodes": 0} | short for algorithm, short in SHORT.items()}


WAITING = ("test_slurm", "a server that never answers", "a dead server", "without_a_server", "a_closed_terminal")
"""parts of the names of tests that mostly wait"""


def pytest_collection_modifyitems(items):
    """One test process begins with the tests that wait, while the others keep the cores busy."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in WAITING))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, worker_id):
    """small_run(algorithm, name="a", **options): the run folder of a small run, for reading only.

    Equal options share it, in all test processes; another name is another run of them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "runs"

    def run(algorithm: str, name: str = "a", **options) -> Path:
        script = SCRIPTS[algorithm]
        args = script.Args(**(SMALL[algorithm] | {"run_name": name} | options))
        key = repr(sorted((asdict(args) | {"algorithm": algorithm, "run_name": None}).items()))
        args.runs_dir = str(shared / hashlib.sha256(key.encode()).hexdigest()[:12])
        deadline = time.monotonic() + 300
        while True:
            try:
                return script.train(args)  # at once where it is finished
            except Busy:  # another test process trains it
                assert time.monotonic() < deadline, f"{args.runs_dir} stays in use"
                time.sleep(0.2)

    return run


def flags(options: dict) -> list[str]:
    """Options as the command line takes them."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return [f"--{'no-' * (value is False)}{n}" if isinstance(value, bool) else f"--{n}={value}" for n, value in named.items()]


@pytest.fixture
def main(monkeypatch) -> Callable:
    """main(algorithm, options): the exit code of a script's command line, in this process.

    What the end of a process does is done for it: a run that failed gives back its lock and the signals.
    """

    def call(algorithm: str, options: dict) -> int:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"{algorithm}_atari_prune.py", *flags(options)])
            try:
                SCRIPTS[algorithm].main()
            except SystemExit as end:
                code = end.code
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()
        return code

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))
