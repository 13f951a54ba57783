"""Write a saved agent as an ONNX file, for programs without PyTorch.

    python -m evals.export runs/NAME

Its input `frames` is (batch, 4, 84, 84) uint8, the oldest frame first. Its outputs are `q_values` (batch, actions) of a DQN, or
`logits` (batch, actions) and `value` (batch,) of a PPO. Units that pruning left dead are taken out. Before the file is written
its outputs are compared with PyTorch's on the frames of a random game. Needs requirements-export.txt.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

from dqn_atari_prune import QNetwork
from evals.common import check_out, folder_of, load, own_stem
from ppo_atari_prune import Agent
from prune_utils.basics import UserError, exit_codes, say, write_atomically
from prune_utils.device import FoldedConv2d
from prune_utils.games import AtariGames
from prune_utils.shrink import hidden_layers, remove_units
from prune_utils.storage import load_weights

TOLERANCE = 1e-5


@dataclass
class Args:
    model: Annotated[Path, tyro.conf.Positional]
    """run folder, or its model.pt or model_packed.npz"""
    out: Path | None = None
    """file to write; None is agent.onnx beside the model, or NAME.onnx for a model file NAME.pt or NAME.npz"""
    env_id: str | None = None
    """Gymnasium id of an Atari game; None is the one that the model was trained on"""


def real_frames(env_id: str, steps: int) -> torch.Tensor:
    """(steps, 4, 84, 84) uint8: what a random agent sees."""
    games, rng = AtariGames(env_id, 1, seed=0), np.random.default_rng(0)
    seen = []
    for _ in range(steps):
        games.send(rng.integers(games.num_actions, size=1))
        seen.append(games.receive().obs.copy())
    return torch.from_numpy(np.concatenate(seen))


@torch.no_grad()
def without_dead_units(network: nn.Module) -> nn.Module:
    """A copy without the channels and hidden units that have no input or no output left. Up to rounding, the same function.

    A unit without incoming weights is the constant relu(bias). It is added to the biases of the layers that read it, which is
    exact because no convolution here pads: each output sees the whole of its kernel. A removal can leave other units dead, so
    it repeats.
    """
    network = copy.deepcopy(network)
    removed = True
    while removed:
        removed = False
        for name, (layer, readers) in hidden_layers(network).items():
            # (outputs, units, positions)
            inputs = [reader.weight.unflatten(1, (len(layer.weight), -1)).flatten(2) for reader in readers]
            keep = layer.weight.flatten(1).any(1) & torch.stack([x.any(2).any(0) for x in inputs]).any(0)
            keep[0] |= ~keep.any()  # a layer that is emptied keeps one unit
            if keep.all():
                continue
            removed = True
            for reader, x in zip(readers, inputs, strict=True):
                reader.bias += x.sum(2) @ (F.relu(layer.bias) * ~keep)
            remove_units({name: keep}, [network])
    return network


def onnx_bytes(network: nn.Module) -> bytes:
    """An ONNX file of the network, for batches of any size."""
    network = without_dead_units(network).eval()
    for layer in network.modules():
        if type(layer) is FoldedConv2d:  # the same function, but a form that is fast in oneDNN only
            layer.__class__ = nn.Conv2d
    names = ["logits", "value"] if isinstance(network, Agent) else ["q_values"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that operators of torchvision are missing
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 4, 84, 84, dtype=torch.uint8),),
            input_names=["frames"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return program.model_proto.SerializeToString()


def onnx_network(data: bytes, num_threads: int = 0) -> Callable[[torch.Tensor], list[np.ndarray]]:
    """What runs an ONNX file, on so many CPU threads (0: all): frames to its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
    return lambda frames: session.run(None, {"frames": frames.numpy()})


def check_installed() -> None:
    """Raise UserError where a package of requirements-export.txt is missing."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-export.txt") from None


def outputs(network: nn.Module, frames: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        out = network(frames)
    return [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m evals.export", description=__doc__)
        check_installed()
        out = args.out or folder_of(args.model) / f"{own_stem(args.model) or 'agent'}.onnx"
        check_out("out", out, model=args.model)
        try:
            network_class = Agent if "actor.weight" in load_weights(args.model) else QNetwork
        except Exception:  # `load` says what is wrong with it
            network_class = QNetwork
        network, env_id = load(args.model, network_class, args.env_id)
        data, frames = onnx_bytes(network), real_frames(env_id, 100)
        pairs = zip(onnx_network(data)(frames), outputs(network, frames), strict=True)
        worst = float(np.max([np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in pairs]))  # nan where one is
        apart = f"outputs differ from PyTorch's by {worst:.1e} (of the largest, if that is above 1)"
        if not worst <= TOLERANCE:
            raise OSError(f"{apart}, more than {TOLERANCE:g}: nothing is written")
        write_atomically(out, data)
        say(f"{out}: {len(data):,} bytes; {apart} on {len(frames)} stacks of frames")


if __name__ == "__main__":
    main()
