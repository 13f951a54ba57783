"""What a pruned network costs in each form: bytes on disk, time to load, memory of its weights, multiply-adds, latency.

    python -m evals.efficiency RUN... --csv costs.csv       # best on an idle machine
    python -m analysis.costs costs.csv --figure costs.png   # from which sparsity on each form pays, and a figure

The forms are the same function in fp32:

    dense                 model.pt as trained, zeros in place
    packed                the same network, from model_packed.npz
    csr                   dense, but its linear layers as CSR with 32-bit indices
    without_dead_units    without units that can't matter
    onnx                  the last one in ONNX Runtime, with --onnx

On a GPU of compute capability 8.0 or more, two more are timed in half precision. One is `dense, fp16`. The other, `2:4, fp16`,
keeps the two largest of each four weights of fc1, so it is another function.
"""

import copy
import json
import os
import tempfile
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import tyro

from dqn_atari_prune import QNetwork
from evals.common import check_out, load
from evals.export import check_installed, onnx_bytes, onnx_network, without_dead_units
from ppo_atari_prune import Agent
from prune_utils import storage
from prune_utils.basics import UserError, check, exit_codes, say
from prune_utils.device import cores, device_name, low_precision, true_fp32, uses_cuda
from prune_utils.evaluation import multiply_adds

BATCHES = (1, 64)
ROUNDS = 10


@dataclass
class Args:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")]
    """folders of finished runs"""
    calls: int = 200
    """timed forward passes of each form, batch size and number of threads, a multiple of 10; all forms in turn"""
    cuda: bool = True
    """measure on the GPU where there is one"""
    onnx: bool = False
    """time ONNX Runtime on the CPU too, with the network that evals.export writes; needs requirements-export.txt"""
    csv: Path | None = None
    """file for the rows of the table, written anew after each run"""


class CSRLinear(nn.Module):
    """A linear layer whose weight is a CSR matrix with 32-bit indices."""

    def __init__(self, dense: nn.Linear):
        super().__init__()
        self.register_buffer("weight", storage.csr(dense.weight.detach(), torch.int32))
        self.register_buffer("bias", dense.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()


def with_csr(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(network, name, CSRLinear(layer))
    return network


def with_two_of_four(network: nn.Module) -> nn.Module:
    """An fp16 network whose fc1 is NVIDIA's 2:4 matrix, with the two largest of each four weights. Another function."""
    network = copy.deepcopy(network)
    fours = network.fc1.weight.detach().view(-1, 4)
    pairs = torch.zeros_like(fours).scatter_(1, fours.abs().topk(2).indices, 1.0)
    sparse = torch.sparse.to_sparse_semi_structured((fours * pairs).view_as(network.fc1.weight))
    network.fc1.weight = nn.Parameter(sparse, requires_grad=False)
    return network


def resident_bytes(t: torch.Tensor) -> int:
    """Bytes of a tensor in memory, with the indices of a sparse one."""
    parts = (t.values(), t.crow_indices(), t.col_indices()) if t.layout == torch.sparse_csr else (t,)
    return sum(part.numel() * part.element_size() for part in parts)


def latencies(forms: dict[str, Callable], batch: int, calls: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each of `calls` forward passes of each form. The forms take turns, so that slow drifts meet all of them."""
    obs = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in forms}

    @torch.inference_mode()
    def forward(network: Callable) -> None:
        network(obs)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for warm in [False] + [True] * ROUNDS:
        for name, network in forms.items():
            seconds = timeit.repeat(partial(forward, network), number=1, repeat=calls // ROUNDS)
            times[name] += seconds if warm else []
    return times


def read(folder: Path) -> tuple[dict, nn.Module]:
    """What a finished run is, and its network."""
    keys = ("algorithm", "env_id", "arm", "prune_type", "effective_prune_rate", "seed", "sparsity")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        identity = {"run": folder.resolve().name} | {key: summary[key] for key in keys}
        network_class = {"dqn": QNetwork, "ppo": Agent}[identity["algorithm"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"RUN must be the folder of a finished run, got {folder}: {type(error).__name__}: {error}") from None
    return identity, load(folder, network_class)[0]


@true_fp32()
def measure(identity: dict, network: nn.Module, calls: int, device: torch.device, onnx: bool = False) -> list[dict]:
    """A row for each form of a network."""
    identity = identity | {"device": device_name(device.type), "torch": torch.__version__}
    identity |= {f"{name}_bytes": size for name, size in storage.storage_bytes(network.state_dict()).items()}
    network = network.to(device)
    forms = {"dense": network, "packed": network, "csr": with_csr(network), "without_dead_units": without_dead_units(network)}
    rows = {}
    for name, form in forms.items():
        weights = {key: t.cpu() for key, t in form.state_dict().items()}
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / ("form.npz" if name == "packed" else "form.pt")
            file.write_bytes(storage.pack(weights) if name == "packed" else storage.torch_file(weights, lambda t: t))
            loads = timeit.repeat(partial(storage.load_weights, file), number=1, repeat=20)
            sizes = {"file_bytes": file.stat().st_size, "load_ms": 1e3 * np.median(loads)}
        sizes |= {"resident_bytes": sum(map(resident_bytes, weights.values())), "multiply_adds": multiply_adds(form)["dense"]}
        sizes["multiply_adds"] += sum(t.values().numel() for t in weights.values() if t.layout == torch.sparse_csr)
        sizes["units"] = sum(len(t) for key, t in weights.items() if key.endswith("bias"))
        rows[name] = identity | {"form": name, "precision": "fp32"} | sizes
    del forms["packed"]  # in memory it is the dense one
    if (
        device.type == "cuda"
        and torch.cuda.get_device_capability() >= (8, 0)
        and all(size % 64 == 0 for size in network.fc1.weight.shape)
    ):
        half = low_precision(network, torch.float16)
        forms |= {"dense, fp16": half, "2:4, fp16": with_two_of_four(half)}  # timed only
        rows |= {name: identity | {"form": name, "precision": "fp16"} for name in ("dense, fp16", "2:4, fp16")}
    if onnx:
        data = onnx_bytes(network)
        rows["onnx"] = identity | {"form": "onnx", "precision": "fp32", "file_bytes": len(data)}
    for threads in sorted({1, cores()} if device.type == "cpu" else {1}):
        torch.set_num_threads(threads)
        if onnx:
            forms["onnx"] = onnx_network(data, threads)
        for batch in BATCHES:
            for name, seconds in latencies(forms, batch, calls, device).items():
                quartiles = (1e6 * np.percentile(seconds, (50, 25, 75))).round(1)
                rows[name] |= zip((f"us_{batch}x{threads}{q}" for q in ("", "_q25", "_q75")), quartiles, strict=True)
    return list(rows.values())


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m evals.efficiency", description=__doc__)
        check(args.calls >= ROUNDS and args.calls % ROUNDS == 0, "calls", f"be a multiple of {ROUNDS}", args.calls)
        if args.csv:
            check_out("csv", args.csv)
        if not args.runs:
            raise UserError("RUN must be at least one run folder, got none")
        runs, names = [(folder, *read(folder)) for folder in args.runs], set()  # all, before minutes of measuring
        for folder, identity, _ in runs:
            name = tuple(identity[key] for key in ("run", "algorithm", "arm", "seed"))
            if name in names:
                raise UserError(
                    f"RUN must name each run once (runs of equal name, arm and seed need a call each), got {folder}"
                )
            names.add(name)
        device, rows = torch.device("cuda" if uses_cuda(args.cuda) else "cpu"), []
        if args.onnx:
            check(device.type == "cpu", "onnx", "come with --no-cuda where there is a GPU", args.onnx)
            check_installed()
        if os.getloadavg()[0] > 0.5:
            say(f"other processes are at work (load {os.getloadavg()[0]:.1f}): latencies will show it", error=True)
        for folder, identity, network in runs:
            rows += measure(identity, network, args.calls, device, args.onnx)
            table = pd.DataFrame(rows)
            if args.csv:
                table.to_csv(args.csv, index=False)
            say(f"measured {folder}", error=True)
        shown = table.filter(regex="^(run|sparsity|form|file.*|load.*|resident.*|multiply.*|units|us_[^_]*)$")
        print(f"{rows[0]['device']}, torch {torch.__version__}; us_AxB: median microseconds of a batch of A with B threads")
        print(shown.round(2).to_string(index=False, na_rep=""))


if __name__ == "__main__":
    main()
