"""Train PPO as ppo_atari_prune.py does, but on CleanRL's environment: stable-baselines3's wrappers, games stepped in turn.

    python -m checks.train_on_wrappers --prune-type none --precision fp32

The run can't be resumed. Its evaluations play the games of the script. Its folder is named after ppo_on_wrappers.
"""

from dataclasses import replace

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, TransformObservation
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv, FireResetEnv, MaxAndSkipEnv, NoopResetEnv

import ppo_atari_prune
from prune_utils.basics import UserError, exit_codes, parse_options
from prune_utils.games import AtariGames, Game, Step


def resized_then_grey(frame: np.ndarray) -> np.ndarray:
    """The order of the Gymnasium 0.29 wrappers that CleanRL uses. Those of 1.x weigh the colours a little differently."""
    return cv2.cvtColor(cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def make_env(env_id: str) -> gym.Env:
    """CleanRL's make_env without ClipRewardEnv, because the script clips rewards itself."""
    env = RecordEpisodeStatistics(gym.make(env_id))
    env = EpisodicLifeEnv(MaxAndSkipEnv(NoopResetEnv(env, noop_max=30), skip=4))
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireResetEnv(env)
    env = TransformObservation(env, resized_then_grey, gym.spaces.Box(0, 255, (84, 84), np.uint8))
    return FrameStackObservation(env, 4)


class WrappedGames(AtariGames):
    """AtariGames made of single environments."""

    def __init__(self, env_id: str, num_envs: int, seed: int, num_threads: int = 0):
        gym.register_envs(ale_py)
        self.envs = [make_env(env_id) for _ in range(num_envs)]
        self.num_envs, self.num_actions = num_envs, int(self.envs[0].action_space.n)
        self.lengths = np.zeros(num_envs, np.int64)
        self.obs = np.stack([env.reset(seed=seed + k)[0] for k, env in enumerate(self.envs)])

    def send(self, actions: np.ndarray) -> None:
        self.actions = actions

    def receive(self) -> Step:
        steps = [env.step(action) for env, action in zip(self.envs, self.actions, strict=True)]
        final_obs, rewards, terminations, truncations = (np.stack(column) for column in list(zip(*steps, strict=True))[:4])
        self.lengths += 1
        self.obs, finished = final_obs.copy(), []
        game_starts = np.array(["episode" in info for *_, info in steps])
        for k in np.flatnonzero(game_starts):
            finished.append(Game(int(k), float(steps[k][4]["episode"]["r"]), int(self.lengths[k]), bool(truncations[k])))
            self.lengths[k] = 0
        for k in np.flatnonzero(terminations | truncations):  # of a life or the game
            self.obs[k] = self.envs[k].reset()[0]
        return Step(self.obs, rewards, terminations, truncations, game_starts, final_obs, finished)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        raise UserError("a run of checks.train_on_wrappers can't be resumed; --overwrite starts it anew")


if __name__ == "__main__":
    with exit_codes():
        options = parse_options(ppo_atari_prune.Args, __doc__)
        ppo_atari_prune.AtariGames = WrappedGames
        ppo_atari_prune.train(replace(options, exp_name="ppo_on_wrappers"))
