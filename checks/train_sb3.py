"""Train stable-baselines3 with CleanRL's hyperparameters, and print a line each 128 steps of all games once it learns.

    python -m checks.train_sb3 dqn --num-envs 8

checks.benchmark starts it and times the lines. It never ends by itself.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import ale_py
import gymnasium as gym
import torch
import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack


@dataclass
class Args:
    algorithm: Annotated[Literal["dqn", "ppo"], tyro.conf.Positional]
    """what to train"""
    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of the game"""
    num_envs: int = 8
    """games played at once"""
    num_threads: int = 0
    """CPU threads; 0 is what torch takes"""
    learning_starts: int = 2000
    """agent steps before a DQN's first update"""


class Lines(BaseCallback):
    """Print a line each 128 steps of all games, from `first_step` agent steps on."""

    def __init__(self, first_step: int):
        super().__init__()
        self.first_step = first_step

    def _on_step(self) -> bool:
        if self.n_calls % 128 == 0 and self.num_timesteps > self.first_step:
            print("stepped", flush=True)
        return True


def main(args: Args) -> None:
    gym.register_envs(ale_py)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    env = VecFrameStack(make_atari_env(args.env_id, n_envs=args.num_envs, seed=1), 4)
    shared = {"policy": "CnnPolicy", "env": env, "seed": 1}
    if args.algorithm == "dqn":
        updates = max(1, args.num_envs // 4)
        every = {"train_freq": max(1, 4 // args.num_envs), "gradient_steps": updates, "target_update_interval": 1000}
        memory = {"buffer_size": 100_000, "optimize_memory_usage": True}  # as CleanRL's, of the same class
        memory["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
        explore = {"exploration_initial_eps": 0.01, "exploration_final_eps": 0.01, "learning_starts": args.learning_starts}
        model = DQN(**shared, **every, **memory, **explore, learning_rate=1e-4, batch_size=32)
    else:
        losses = {"clip_range": 0.1, "clip_range_vf": 0.1, "ent_coef": 0.01, "vf_coef": 0.5}
        model = PPO(**shared, **losses, n_steps=128, batch_size=32 * args.num_envs, n_epochs=4, learning_rate=2.5e-4)
    model.learn(10**8, callback=Lines(args.learning_starts if args.algorithm == "dqn" else 0))


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.train_sb3", description=__doc__))
