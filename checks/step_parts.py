"""How long the parts of a step of all games take: microseconds of each part alone, of one whole update, and of its mask.

    python -m checks.step_parts --algorithm dqn

The parts are the emulator, acting, and learning (its passes through the network alone). On a GPU each is a graph replay. The
bound is the sum of the parts: no step can be faster. A DQN on a GPU learns while the emulator steps, so only the longer of
these two counts. checks.benchmark compares the bound with the step of a whole run. The last two lines are one measurement of
health, in a run of 2M agent steps and in one of 1M.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import tyro

import dqn_atari_prune
import ppo_atari_prune
from prune_utils.device import DTYPES, PreallocatedAdam, configure, graphed, low_precision, resolve, scaled
from prune_utils.evaluation import observe
from prune_utils.games import AtariGames
from prune_utils.health import measure

SCRIPTS = {"dqn": dqn_atari_prune, "ppo": ppo_atari_prune}
NETWORKS = {"dqn": dqn_atari_prune.QNetwork, "ppo": ppo_atari_prune.Agent}


@dataclass
class Args:
    algorithm: Literal["dqn", "ppo"] = "dqn"
    """whose step to take apart"""
    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of the game"""
    num_envs: int = 8
    """games played at once"""
    num_threads: int = 0
    """CPU threads; 0 is all the cores that this process may use"""
    precision: str = "auto"
    """number format, as the scripts take it"""


def microseconds(function: Callable, repeats: int, cuda: bool) -> float:
    """Microseconds of one call, after three that warm up."""
    for _ in range(3):
        function()
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats * 1e6


def parts(args: Args) -> dict[str, float]:
    """Microseconds of an update and its mask, and per step of all games of emulator, acting and learning."""
    script, n = SCRIPTS[args.algorithm], args.num_envs
    resolved = resolve(True, args.precision, args.num_threads, {})
    device, dtype = torch.device(resolved["device"]), DTYPES[resolved["precision"]]
    cuda = device.type == "cuda"
    configure(resolved["num_threads"], resolved["precision"], deterministic=True)
    games, rng = AtariGames(args.env_id, n, 1, resolved["num_threads"]), np.random.default_rng(0)
    network = NETWORKS[args.algorithm](games.num_actions)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = PreallocatedAdam(network.parameters(), lr=1e-4, eps=1e-8)
    fast = low_precision(network, dtype, optimizer)
    alone, target = copy.deepcopy(fast), copy.deepcopy(fast)  # passes alone: no gradient goes on to master weights
    masks = script.make_masks(script.prunable(network), "l1", 0.5, "layer", seed=1)
    changes = (network, fast, optimizer)

    def frames(batch: int) -> torch.Tensor:
        obs = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, device=device)
        return obs.contiguous(memory_format=torch.channels_last)

    def batch_of(size: int, kind: torch.dtype) -> torch.Tensor:
        return torch.zeros(size, dtype=kind, device=device)

    def forward(network: torch.nn.Module, obs: torch.Tensor):
        with torch.no_grad():
            return network(obs)

    def backward(obs: torch.Tensor) -> None:
        out = alone(obs)
        sum(t.square().mean() for t in (out if isinstance(out, tuple) else (out,))).backward()
        alone.zero_grad()

    def step() -> None:
        games.send(rng.integers(0, games.num_actions, n))
        games.receive()

    if args.algorithm == "dqn":  # train_frequency 4, batch 32: the targets of the updates that one step asks for are one pass
        at_once = max(1, n // 4)
        following, batches = frames(32 * at_once), [frames(32) for _ in range(at_once)]
        batch = (batches[0], batch_of(32, torch.int64), batch_of(32, torch.float32), frames(32), batch_of(32, torch.bool))
        update = partial(script.update, network, fast, target, optimizer, masks, batch, 32, 0.99)
        share = n / 4 / at_once

        def learn() -> None:
            forward(target, following)
            for obs in batches:
                backward(obs)
    else:  # 4 epochs of 4 minibatches per rollout of 128 steps
        obs = scaled(frames(32 * n), dtype)
        minibatch = (obs, batch_of(32 * n, torch.int64), *[batch_of(32 * n, torch.float32)] * 4)
        update = partial(script.update, network, fast, optimizer, masks, minibatch, script.Args())
        learn, share = partial(backward, obs), 16 / 128
    acting = torch.from_numpy(games.obs).to(device)  # as the emulator hands them over
    repeats = 300 if cuda else 20
    graph, changing = graphed(device), graphed(device, changes)
    return {
        "update": microseconds(changing(update), repeats, cuda),
        "mask": microseconds(changing(partial(script.mask_gradients, network, masks)), 1000, cuda),
        "emulator": microseconds(step, 1000 if cuda else 200, cuda),
        "acting": microseconds(graph(partial(forward, alone, acting)), repeats, cuda),
        "learning": microseconds(graph(learn), repeats, cuda) * share,
    }


def health(args: Args, total_timesteps: int) -> float:
    """Microseconds of one measurement of health, as `Run.measure_health` makes it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = NETWORKS[args.algorithm](AtariGames(args.env_id, 1, 1).num_actions).to(device)
    policy, steps = SCRIPTS[args.algorithm].make_policy(network, 1), min(250, total_timesteps // 8000)

    def call() -> None:
        measure(network, observe(policy, args.env_id, steps, 1, args.num_threads).to(device))

    return microseconds(call, 5, device.type == "cuda")


def bound(algorithm: str, us: dict[str, float], cuda: bool) -> float:
    """Microseconds that a step of all games takes at least: the sum of its parts.

    On a GPU a DQN learns while the emulator steps, so only the longer of these two counts.
    """
    if cuda and algorithm == "dqn":
        return us["acting"] + max(us["emulator"], us["learning"])
    return us["emulator"] + us["acting"] + us["learning"]


def main(args: Args) -> None:
    us = parts(args)
    us["bound"] = bound(args.algorithm, us, torch.cuda.is_available())
    us |= {"health, 2M": health(args, 2_000_000), "health, 1M": health(args, 1_000_000)}
    for name, value in us.items():
        print(f"{name:12}{value:10,.0f} us")


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m checks.step_parts", description=__doc__))
