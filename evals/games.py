"""Whole games of a saved model: what the two evaluators share, and what can be computed from a saved model afterwards."""

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
from scipy import stats

from evals import storage

ENVIRONMENTS = 10
"""games of an evaluation played at once"""


@torch.no_grad()
def play(act, make_games, env_id: str, eval_episodes: int, seed: int, num_threads: int) -> list[dict]:
    """Play eval_episodes whole games in ENVIRONMENTS environments, or one each if they are fewer; environment k starts from
    seed + k and plays games k, k + ENVIRONMENTS and so on, one after the other.

    Taking the first games to finish would favour short ones, so how many each environment plays is settled beforehand; those
    that are done play on unseen, since the bits of a row depend on the size of the batch. `act(obs)` maps (n, 4, 84, 84) uint8
    to (n,) actions.
    """
    at_once = min(eval_episodes, ENVIRONMENTS)
    games, turns = make_games(env_id, at_once, seed, num_threads), [0] * at_once
    rows: dict[int, dict] = {}
    while len(rows) < eval_episodes:
        games.send(act(torch.from_numpy(games.obs)).cpu().numpy())
        for game in games.receive().finished:
            episode = game.env + at_once * turns[game.env]
            turns[game.env] += 1
            if episode < eval_episodes:
                row = {"episode": episode, "seed": seed + game.env, "return": game.episodic_return}
                rows[episode] = row | {"length": game.episodic_length, "truncated": game.truncated}
    return [rows[k] for k in range(eval_episodes)]


def statistics(returns: list[float]) -> dict:
    """Mean, standard deviation (n - 1) and 95 % t interval of the mean over games; one game alone has neither."""
    n, mean = len(returns), float(np.mean(returns))
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "ci95": None}
    sem = stats.sem(returns)
    interval = [mean, mean] if sem == 0 else [float(x) for x in stats.t.interval(0.95, n - 1, loc=mean, scale=sem)]
    return {"n": n, "mean": mean, "std": float(np.std(returns, ddof=1)), "ci95": interval}


def markdown(table) -> str:
    """A data frame as a Markdown table, a line a row."""
    lines = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


@torch.no_grad()
def multiply_adds(network: nn.Module) -> dict[str, int]:
    """Multiply-adds of the weights in a forward pass of one stack of frames: dense, and those whose weight is not zero."""
    total = {"dense": 0, "nonzero": 0}

    def count(layer, _, output):
        positions = output[0, 0].numel()  # a convolution uses each weight once an output position, a linear layer once
        total["dense"] += positions * layer.weight.numel()
        total["nonzero"] += positions * int(layer.weight.count_nonzero())

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    return total


def summarise(network: nn.Module, rows: list[dict]) -> dict:
    """What summary.json says of a saved network and its evaluation games (rows of eval.csv), a moment each."""
    returns: dict[str, list[float]] = {}
    for row in rows:
        returns.setdefault(row["moment"], []).append(row["return"])
    weights = {name: t.detach().cpu() for name, t in network.state_dict().items()}
    scores = {moment: statistics(values) for moment, values in returns.items()}
    sizes = {"disk": storage.storage_bytes(weights), "disk_break_even_rate": storage.break_even(weights)}
    return {"eval": scores} | sizes | {"multiply_adds": multiply_adds(network)}


@torch.no_grad()
def record_video(act, env_id: str, spec: dict, seed: int, path: Path) -> float:
    """Play one game in colour with the stable-baselines3 wrappers and write it as an mp4 at 15 frames a second; its score."""
    from moviepy import ImageSequenceClip
    from stable_baselines3.common.atari_wrappers import FireResetEnv, MaxAndSkipEnv, NoopResetEnv, WarpFrame

    env = gym.make(env_id, render_mode="rgb_array", frameskip=1, repeat_action_probability=spec["repeat_action_probability"])
    env = MaxAndSkipEnv(NoopResetEnv(env, noop_max=30), skip=4)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireResetEnv(env)
    env = gym.wrappers.FrameStackObservation(WarpFrame(env), 4, padding_type="zero")
    obs, _ = env.reset(seed=seed)
    frames, score, over = [env.render()], 0.0, False
    while not over:
        stack = torch.from_numpy(np.asarray(obs)[None, ..., 0])
        obs, reward, terminated, truncated, _ = env.step(int(act(stack)[0]))
        frames.append(env.render())
        score, over = score + float(reward), terminated or truncated
    env.close()
    ImageSequenceClip(frames, fps=15).write_videofile(str(path), audio=False, logger=None)
    return score


@dataclass
class Args:
    model: tyro.conf.Positional[Path]
    """run folder, model.pt or model_packed.npz (with --env-id where no config.json lies beside it)"""
    eval_episodes: int = 10
    """whole games to play, at least 1"""
    seed: int = 1
    """seed of the games and of the actions, at least 0"""
    greedy: bool = False
    """take the best action always; without sticky actions only 29 different greedy games exist, so they are no sample"""
    prune_type: Literal["none", "random", "l1"] = "none"
    """prune the loaded model first: the loss without recovery"""
    prune_rate: float = 0.3
    """share of the entries of every tensor to remove, in [0, 1)"""
    prune_scope: Literal["layer", "global"] = "layer"
    """layer removes the rate from each tensor, global ranks all tensors together"""
    prune_bias: bool = True
    """prune bias tensors too"""
    env_id: str | None = None
    """Gymnasium id of an Atari game; None is the one that the model was trained on"""
    capture_video: bool = False
    """record one more game as an mp4 in colour"""
    out: Path | None = None
    """CSV file of the games; None is a name made from the options, beside the model"""


def load(script, network_class, path: Path, env_id: str | None) -> tuple[nn.Module, str]:
    """The network of a saved model in fp32, and the game it was trained on; UserError for a file that is something else."""
    folder = path if path.is_dir() else path.parent
    if env_id is None:
        config = script.read_config(folder)
        script.require(config, "env_id", f"be given where {folder / 'config.json'} is not that of a run", env_id)
        env_id = config["options"]["env_id"]
    num_actions = script.AtariGames(env_id, 1, 0).num_actions
    try:
        weights = storage.load_weights(path)
        network = network_class(num_actions, len(weights["fc1.weight"]))
        told, wanted = ({n: f"{t.dtype} {list(t.shape)}" for n, t in w.items()} for w in (weights, network.state_dict()))
    except FileNotFoundError:
        raise script.UserError(f"model must be a run folder or a model file, got {path}: no such file") from None
    except storage.BrokenFile as error:
        raise script.UserError(f"model must be a saved network, got {path}: {error}") from None
    except Exception as error:  # whatever a stranger's file makes the reader say
        raise script.UserError(f"model must be a saved network, got {path}: {type(error).__name__}") from None
    for name in wanted | told:
        found, right = told.get(name, "missing"), wanted.get(name, "missing")
        if found != right:
            reason = f"{name} is {found}, not {right}"
            raise script.UserError(f"model must be a {script.ALGORITHM} network for {env_id}, got {path}: {reason}")
    network.load_state_dict(weights)
    return network, env_id


def run(script, network_class, make_policy, description: str | None) -> None:
    """The evaluator's command line: play, print, write the games, record."""
    args = tyro.cli(Args, description=description)
    try:
        script.require(args.eval_episodes >= 1, "eval_episodes", "be at least 1", args.eval_episodes)
        script.require(args.seed >= 0, "seed", "be at least 0", args.seed)
        script.require(0.0 <= args.prune_rate < 1.0, "prune_rate", "lie in [0, 1)", args.prune_rate)
        if args.env_id is not None:
            script.atari_spec(args.env_id)
        network, env_id = load(script, network_class, args.model, args.env_id)
        tensors, mask_seed = script.prunable(network, args.prune_bias), script.derive_seed(args.seed, "mask")
        masks = script.make_masks(tensors, args.prune_type, args.prune_rate, args.prune_scope, mask_seed)
        for name, mask in masks.items():
            tensors[name].mul_(mask).add_(0.0)  # -0.0 + 0.0 is +0.0
        parts = [f"games-{args.eval_episodes}", f"s{args.seed}"] + ["greedy"] * args.greedy
        if args.prune_type != "none":
            parts += [f"{args.prune_type}-{args.prune_rate:g}", args.prune_scope] + ["no-bias"] * (not args.prune_bias)
        folder = args.model if args.model.is_dir() else args.model.parent
        out = args.out or folder / f"{'_'.join(parts)}.csv"
        writable = os.access(out.parent, os.W_OK | os.X_OK) and not out.is_dir()
        script.require(writable, "out", "be a file in a folder that can be written", out)
        policy = make_policy(network, script.derive_seed(args.seed, "evaluation"), args.greedy)
        rows = play(policy, script.AtariGames, env_id, args.eval_episodes, script.derive_seed(args.seed, "games"), 0)
        with open(out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        result = statistics([row["return"] for row in rows])
        spread = "" if result["std"] is None else f", std {result['std']:.1f}, 95 % interval {np.round(result['ci95'], 1)}"
        print(f"{args.model}: {result['n']} games of {env_id}, mean return {result['mean']:.1f}{spread}; games in {out}")
        sizes = storage.storage_bytes(network.state_dict()).items()
        print("bytes on disk: " + ", ".join(f"{size:,} as {name}" for name, size in sizes))
        if args.capture_video:
            score = record_video(policy, env_id, script.atari_spec(env_id), args.seed, out.with_suffix(".mp4"))
            print(f"recorded a game with a return of {score:.0f}: {out.with_suffix('.mp4')}")
    except (script.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, script.UserError) else 1)
