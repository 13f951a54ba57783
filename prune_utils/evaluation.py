"""Whole games of a network: playing, statistics, multiply-adds, video."""

import math
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

from prune_utils.device import true_fp32
from prune_utils.games import AtariGames, atari_spec

Policy = Callable[[torch.Tensor], torch.Tensor]
"""observations (n, 4, 84, 84) uint8 to actions (n,)"""
ENVIRONMENTS = 10
"""games of an evaluation played at once"""


@torch.no_grad()
@true_fp32()
def play(
    policy: Policy, env_id: str, eval_episodes: int, seed: int, num_threads: int = 0, each_step: Callable = lambda actions: None
) -> list[dict]:
    """Play eval_episodes whole games; rows of episode, seed, return (unclipped), length (agent steps) and truncated.

    Environment k of at most ENVIRONMENTS starts from seed + k and plays games k, k + ENVIRONMENTS and so on. How many each one
    plays is settled in advance, since the first games to finish are the short ones. An environment that is done plays on
    uncounted, because a smaller batch would change the rounding of the other rows. `each_step` gets the actions of each step,
    those of uncounted games too. It may raise to end the evaluation.
    """
    at_once = min(eval_episodes, ENVIRONMENTS)
    games, played = AtariGames(env_id, at_once, seed, num_threads), [0] * at_once
    rows: dict[int, dict] = {}
    while len(rows) < eval_episodes:
        actions = policy(torch.from_numpy(games.obs)).cpu().numpy()
        each_step(actions)
        games.send(actions)
        for game in games.receive().finished:
            episode = game.env + at_once * played[game.env]
            played[game.env] += 1
            if episode < eval_episodes:
                row = {"episode": episode, "seed": seed + game.env, "return": game.episodic_return}
                rows[episode] = row | {"length": game.episodic_length, "truncated": game.truncated}
    return [rows[k] for k in range(eval_episodes)]


@torch.no_grad()
@true_fp32()
def observe(policy: Policy, env_id: str, steps: int, seed: int, num_threads: int = 0) -> torch.Tensor:
    """Observations (2 * steps, 4, 84, 84) uint8 of two games, each from its start."""
    games, seen = AtariGames(env_id, 2, seed, num_threads), []  # two, since the start of a game takes as long as 50 steps
    for _ in range(steps):
        seen.append(torch.from_numpy(games.obs.copy()))
        games.send(policy(seen[-1]).cpu().numpy())
        games.receive()
    return torch.cat(seen)


def statistics(returns: list[float]) -> dict:
    """Mean, standard deviation (n - 1) and 95 % t interval of the mean over games. One game alone has only a mean."""
    from scipy import special  # needed at the end of a run only; scipy.stats takes a second to load

    n, mean = len(returns), float(np.mean(returns))
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "ci95": None}
    std = float(np.std(returns, ddof=1))
    quantiles = special.stdtrit(n - 1, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return {"n": n, "mean": mean, "std": std, "ci95": (quantiles * (std / np.sqrt(n)) + mean).tolist()}


@torch.no_grad()
def multiply_adds(network: nn.Module) -> dict[str, int]:
    """Multiply-adds of one forward pass of one stack of frames: of all weights, and of those that are not zero."""
    total = {"dense": 0, "nonzero": 0}

    def count(layer, _, output):
        positions = math.prod(output.shape[2:])  # each weight of a convolution is used once per output position
        total["dense"] += positions * layer.weight.numel()
        total["nonzero"] += positions * int(layer.weight.count_nonzero())

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
@true_fp32()
def record_video(policy: Policy, env_id: str, seed: int, path: Path) -> float:
    """Play one game in colour with the stable-baselines3 wrappers, write it as an mp4 at 15 frames per second; its score.

    Raises OSError if that fails, and then writes nothing.
    """
    part = path.with_name(path.name + ".part")
    try:
        import imageio_ffmpeg  # it keeps Ctrl-C from ffmpeg
        from stable_baselines3.common.atari_wrappers import AtariWrapper

        stickiness = atari_spec(env_id)["repeat_action_probability"]
        env = gym.make(env_id, render_mode="rgb_array", frameskip=1, repeat_action_probability=stickiness)
        env = AtariWrapper(env, terminal_on_life_loss=False, clip_reward=False)
        env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
        obs, _ = env.reset(seed=seed)
        height, width, _ = env.render().shape
        encoding = {"fps": 15, "macro_block_size": 2, "output_params": ["-f", "mp4"]}
        score, over = 0.0, False
        with closing(imageio_ffmpeg.write_frames(part, (width, height), **encoding)) as video:
            video.send(None)  # it opens the file
            while not over:
                video.send(env.render())
                stack = torch.from_numpy(np.asarray(obs)[None, ..., 0])
                obs, reward, terminated, truncated, _ = env.step(int(policy(stack)[0]))
                score, over = score + float(reward), terminated or truncated
            video.send(env.render())
        env.close()
        os.replace(part, path)
        return score
    except Exception as error:  # whatever a game, the wrappers or ffmpeg say
        part.unlink(missing_ok=True)
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise OSError(f"no video of {env_id} can be recorded ({reason})") from error
