"""Small real runs on SpaceInvaders, each trained once a session and shared by the tests that look at it."""

import csv
import json
from pathlib import Path

import pytest
import torch

import dqn_atari_prune
import ppo_atari_prune

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
SMALL = {
    "dqn": {
        "total_timesteps": 2400,
        "num_envs": 2,
        "learning_starts": 600,
        "buffer_size": 800,
        "target_network_frequency": 200,
    },
    "ppo": {"total_timesteps": 1536, "num_envs": 2},
}
"""DQN: a ring that wraps and 450 updates, the cut after 150; PPO: 6 rollouts of 16 updates, the cut after the third"""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """small_run(algorithm, name="a", **options): the run folder of a small run; equal calls share one run."""
    made: dict[tuple, Path] = {}

    def run(algorithm: str, name: str = "a", **options) -> Path:
        key = (algorithm, name, *sorted(options.items()))
        if key not in made:
            base = {"num_threads": 1, "eval_episodes": 2, "runs_dir": str(tmp_path_factory.mktemp("runs")), "run_name": name}
            args = SCRIPTS[algorithm].Args(**(SMALL[algorithm] | base | options))
            made[key] = SCRIPTS[algorithm].train(args)
        return made[key]

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))
