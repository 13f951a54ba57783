"""Small real runs on SpaceInvaders, each trained once a session and shared by the tests that look at it."""

import csv
import json
import subprocess
import sys
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


def wandb_records(folder: Path, runs: str = "*run-*") -> list[dict]:
    """All records of a run folder's W&B files, as the real client reads them."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    found = [subprocess.run([*words, str(d)], capture_output=True, check=True) for d in sorted(folder.glob(f"wandb/{runs}"))]
    return [json.loads(line) for done in found for line in done.stdout.splitlines()]


def bits(folder: Path) -> dict[str, bytes | dict]:
    """What must repeat: the bytes of the result files, and the summary but for its clocks."""
    files = {name: (folder / name).read_bytes() for name in ("model.pt", "eval.csv", "curves.csv") if (folder / name).exists()}
    return files | {"summary": {k: v for k, v in summary(folder).items() if k != "time"}}
