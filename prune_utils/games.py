"""Atari games stepped together: whole games counted, lives as terminations, exact restore."""

import hashlib
from typing import NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from prune_utils.basics import UserError, check


def atari_spec(env_id: str) -> dict:
    """Keyword arguments of an Atari id: game (the ROM's name), repeat_action_probability, full_action_space."""
    gym.register_envs(ale_py)
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise UserError(f"--env-id must be an Atari id that Gymnasium knows, got {env_id}: {error}") from None
    check(spec.entry_point == "ale_py.env:AtariEnv", "env_id", "be an Atari game", env_id)
    return {key: spec.kwargs[key] for key in ("game", "repeat_action_probability", "full_action_space")}


class Game(NamedTuple):
    """A finished game: its unclipped score over all lives, its length in agent steps, whether the frame limit ended it."""

    env: int
    episodic_return: float
    episodic_length: int
    truncated: bool


class Step(NamedTuple):
    """What the games show after a step. Every array has one row per game; obs and final_obs are (num_envs, 4, 84, 84) uint8."""

    obs: np.ndarray
    rewards: np.ndarray  # the game's own, unclipped
    terminations: np.ndarray  # a lost life or the end of the game
    truncations: np.ndarray  # the frame limit
    game_starts: np.ndarray  # obs is the first of a new game
    final_obs: np.ndarray | None  # the last frames of a truncated game; undefined for the others
    finished: list[Game]


class AtariGames:
    """num_envs games stepped together: frame skip 4 with max-pool, 84x84 grey, stack of 4, life loss as termination.

    Same-step autoreset: every row is a real step. The row of a game that ended shows the first frames of the next one.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, num_threads: int = 0, max_frames: int = 108_000):
        spec = atari_spec(env_id)
        self.envs = AtariVectorEnv(
            num_envs=num_envs,
            num_threads=min(num_threads, num_envs),
            autoreset_mode="SameStep",
            life_loss_info=True,
            reward_clipping=False,
            max_num_frames_per_episode=max_frames,
            **spec,
        )
        self.num_actions = int(self.envs.single_action_space.n)
        self.sticky = spec["repeat_action_probability"] > 0
        self.num_envs, self.seed = num_envs, seed
        self.obs, info = self.envs.reset(seed=seed)
        self.frame_numbers = info["episode_frame_number"]
        self.returns = np.zeros(num_envs)
        self.resets = np.zeros(num_envs, np.int64)  # games begun since the seeded reset
        self.histories = [bytearray() for _ in range(num_envs)]  # actions of the game in progress

    def send(self, actions: np.ndarray) -> None:
        """Start a step of all games; `receive` waits for it. The emulator's threads work in between."""
        self.actions = actions.tolist()
        self.envs.send(actions)

    def receive(self) -> Step:
        """Finish the step that `send` started."""
        self.obs, rewards, terminations, truncations, info = self.envs.recv()
        self.returns += rewards
        for history, action in zip(self.histories, self.actions, strict=True):
            history.append(action)
        # a lost life terminates too, and the game goes on; only the end of a game resets its frame counter
        game_starts = info["episode_frame_number"] < self.frame_numbers
        self.frame_numbers = info["episode_frame_number"]
        ended = np.flatnonzero(game_starts)
        finished = [Game(int(k), float(self.returns[k]), len(self.histories[k]), bool(truncations[k])) for k in ended]
        if finished:
            self.returns[ended] = 0
            self.resets[ended] += 1
            for k in ended:
                self.histories[k].clear()
            if self.sticky:
                self.reset(game_starts)
        return Step(self.obs, rewards, terminations, truncations, game_starts, info.get("final_obs"), finished)

    def reset(self, mask: np.ndarray, seeded: bool = True) -> None:
        """Begin new games where the mask is set. Sticky actions draw at every step, so there each game has its own seed."""
        seeds = self.seed + np.arange(self.num_envs) + self.sticky * self.num_envs * self.resets
        obs, info = self.envs.reset(seed=seeds[mask] if seeded else None, options={"reset_mask": mask})
        self.obs, self.frame_numbers = obs, info["episode_frame_number"]

    def state_dict(self) -> dict:
        state = {"seed": self.seed, "resets": self.resets.tolist()}
        state |= {"histories": [history.hex() for history in self.histories], "frame_numbers": self.frame_numbers.tolist()}
        state |= {"returns": self.returns.tolist()}
        return state | {"obs_sha256": hashlib.sha256(self.obs.tobytes()).hexdigest()}

    def load_state_dict(self, state: dict) -> None:
        """Play the games in progress again, aligned at their end: the emulator can't be saved, but it repeats itself.

        Without sticky actions a game depends on its seed, its actions and how many no-op counts were drawn before (one per
        reset). Games that have not begun yet play no-ops. Raises OSError if the games do not show the frames that they showed
        when saved.
        """
        self.seed, self.resets = state["seed"], np.array(state["resets"])
        self.histories = [bytearray.fromhex(history) for history in state["histories"]]
        lengths = np.array([len(history) for history in self.histories])
        longest = int(lengths.max())
        for t in range(longest + 1):
            starts = longest - lengths == t
            if starts.any():
                self.reset(starts)
                for n in range(0 if self.sticky else self.resets[starts].max()):
                    self.reset(starts & (self.resets > n), seeded=False)
            if t < longest:
                actions = [history[t - longest] if len(history) >= longest - t else 0 for history in self.histories]
                self.obs, *_, info = self.envs.step(np.array(actions))
                self.frame_numbers = info["episode_frame_number"]
        same_frames = hashlib.sha256(self.obs.tobytes()).hexdigest() == state["obs_sha256"]
        if self.frame_numbers.tolist() != state["frame_numbers"] or not same_frames:
            raise OSError("the emulator did not return to the state of the checkpoint; --overwrite starts anew")
        self.returns = np.array(state["returns"])
