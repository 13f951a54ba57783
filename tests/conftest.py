"""Small real runs on SpaceInvaders, each trained once a session and shared by the tests that look at it."""

import csv
import hashlib
import json
import time
from pathlib import Path

import pytest
import torch

import dqn_atari_prune
import ppo_atari_prune

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
COMMON = {"num_envs": 2, "hidden_size": 64, "eval_episodes": 1, "num_threads": 1}
SMALL = {
    "dqn": COMMON
    | {"total_timesteps": 2200, "learning_starts": 900, "buffer_size": 700, "target_network_frequency": 200, "batch_size": 8},
    "ppo": COMMON | {"total_timesteps": 1536, "update_epochs": 2},
}
"""DQN: a ring that wraps and 325 updates, the cut after 50; PPO: 6 rollouts of 8 updates, the cut after the third"""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, worker_id):
    """small_run(algorithm, name="a", **options): the run folder of a small run, for reading only.

    Equal calls share it, in all test processes.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "runs"

    def run(algorithm: str, name: str = "a", **options) -> Path:
        script = SCRIPTS[algorithm]
        key = hashlib.sha256(repr((algorithm, sorted(options.items()))).encode()).hexdigest()[:12]
        args = script.Args(**(SMALL[algorithm] | {"runs_dir": str(shared / key), "run_name": name} | options))
        deadline = time.monotonic() + 300
        while True:
            try:
                return script.train(args)  # at once where it is finished
            except script.Busy:  # another test process trains it
                assert time.monotonic() < deadline, f"{args.runs_dir} stays in use"
                time.sleep(0.2)

    return run


def flags(options: dict) -> list[str]:
    """Options as the command line takes them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))
