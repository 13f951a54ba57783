"""What a pruned network costs: bytes on disk, time to load, memory of its weights, multiply-adds, and latency, in each form.

    python evals/efficiency.py runs/NAME...                                # a table
    python evals/efficiency.py runs/* --csv costs.csv --figure costs.png   # its rows; bytes and latency against sparsity
    python evals/efficiency.py costs.csv --figure costs.png                # the same figure, of rows measured before

Forms of the same function in fp32: `dense`, model.pt as trained, zeros in place; `packed`, the same network from
model_packed.npz; `csr`, its linear layers as CSR with 32-bit indices; `without_dead_units`, units that can't matter taken out
of it. On a GPU also `2:4`, fc1 in half precision with the two largest of each four weights, which is another function.
"""

import copy
import importlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import games, storage

BATCHES = (1, 64)
ROUNDS = 10
SIZES = [*storage.FORMATS, "zlib_of_dense", "zstd_of_dense", "packed"]
SIZES.remove("dense")


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or CSV files that --csv wrote; at least one"""
    calls: int = 200
    """timed forward passes of each form, batch size and number of threads, at least 10; all forms in turn"""
    cuda: bool = True
    """measure on the GPU where there is one"""
    csv: Path | None = None
    """file for the rows of the table"""
    figure: Path | None = None
    """PNG or SVG: bytes on disk and latency against sparsity"""


class CSRLinear(nn.Module):
    """A linear layer whose weight is a CSR matrix with 32-bit indices."""

    def __init__(self, dense: nn.Linear):
        super().__init__()
        self.bias, self.weight = dense.bias.detach(), storage.csr(dense.weight.detach(), torch.int32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias[:, None], self.weight, x.t()).t()


def with_csr(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    for name, layer in list(network.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(network, name, CSRLinear(layer))
    return network


@torch.no_grad()
def without_dead_units(network: nn.Module) -> nn.Module:
    """The network without the channels and hidden units that no input or no output is left of: the same function, to rounding.

    A unit without incoming weights is the constant relu(bias), which goes into the biases of the layers that read it: no
    convolution here pads, so that each output sees the whole of its kernel. A removal can leave other units dead: repeat.
    """
    network = copy.deepcopy(network)
    layers = [m for m in network.children() if isinstance(m, (nn.Conv2d, nn.Linear))]
    body, heads = layers[: layers.index(network.fc1) + 1], layers[layers.index(network.fc1) + 1 :]
    removed = True
    while removed:
        removed = False
        for layer, readers in zip(body, [*([reader] for reader in body[1:]), heads], strict=True):
            views = [
                reader.weight.view(len(reader.weight), len(layer.weight), -1) for reader in readers
            ]  # outputs, units, places
            keep = layer.weight.flatten(1).any(1) & torch.stack([view.any(2).any(0) for view in views]).any(0)
            keep[0] |= ~keep.any()  # a layer that is emptied keeps one unit
            if keep.all():
                continue
            removed, constant = True, F.relu(layer.bias) * ~keep
            for reader, view in zip(readers, views, strict=True):
                reader.bias += view.sum(2) @ constant
                reader.weight = nn.Parameter(view[:, keep].reshape(len(view), -1, *reader.weight.shape[2:]))
            layer.weight, layer.bias = nn.Parameter(layer.weight[keep]), nn.Parameter(layer.bias[keep])
    return network


def with_two_of_four(network: nn.Module) -> nn.Module:
    """fc1 as NVIDIA's 2:4 semi-structured matrix in half precision: the two largest of each four weights. Another function."""
    network = copy.deepcopy(network)
    fours = network.fc1.weight.detach().half().view(-1, 4)
    pairs = torch.zeros_like(fours).scatter_(1, fours.abs().topk(2).indices, 1.0)
    sparse = torch.sparse.to_sparse_semi_structured((fours * pairs).view_as(network.fc1.weight))
    network.fc1.weight = nn.Parameter(sparse, requires_grad=False)
    return network


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases of every layer by name, sparse ones included."""
    layers = [(name, layer) for name, layer in network.named_children() if hasattr(layer, "bias")]
    return {f"{name}.{kind}": getattr(layer, kind).detach() for name, layer in layers for kind in ("weight", "bias")}


def resident_bytes(t: torch.Tensor) -> int:
    """Bytes of a tensor in memory, the indices of a sparse one included."""
    parts = (t.values(), t.crow_indices(), t.col_indices()) if t.layout == torch.sparse_csr else (t,)
    return sum(part.numel() * part.element_size() for part in parts)


def milliseconds(function, repeats: int) -> float:
    """Median of the times of a function."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def latencies(forms: dict[str, nn.Module], batch: int, calls: int, device: torch.device) -> dict[str, np.ndarray]:
    """Microseconds of each of so many forward passes of each form, in turn round by round: what drifts, drifts for all."""
    obs = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(-1, ROUNDS):  # the first warms up
        for name, network in forms.items():
            for _ in range(calls // ROUNDS):
                began = time.perf_counter()
                with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=name.endswith("fp16")):
                    network(obs)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_ >= 0:
                    times[name].append(1e6 * (time.perf_counter() - began))
    return {name: np.array(us) for name, us in times.items()}


def measure(folder: Path, args: Args) -> list[dict]:
    """A row for each form of the network of a run folder."""
    script = importlib.import_module(f"{json.loads((folder / 'config.json').read_text())['algorithm']}_atari_prune")
    summary = json.loads((folder / "summary.json").read_text())
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    network, _ = games.load(script, script.Agent if summary["algorithm"] == "ppo" else script.QNetwork, folder, None)
    keys = ("algorithm", "env_id", "arm", "prune_type", "effective_prune_rate", "seed", "sparsity")
    told = {key: summary[key] for key in keys} | {"device": "CPU"}
    told |= {f"{name}_bytes": size for name, size in storage.storage_bytes(network.state_dict()).items()}
    forms = {"dense": network, "csr": with_csr(network), "without_dead_units": without_dead_units(network)}
    forms = {name: form.to(device) for name, form in forms.items()}
    if device.type == "cuda":
        told["device"] = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() >= (8, 0):
            forms |= {"dense, fp16": forms["dense"], "2:4, fp16": with_two_of_four(forms["dense"])}
    rows = {name: told | {"form": name} for name in ("dense", "packed", *list(forms)[1:])}
    with tempfile.TemporaryDirectory() as scratch:
        for name, row in rows.items():
            weights, file = tensors(forms["dense" if name == "packed" else name]), Path(scratch) / name
            if name == "packed":
                file = file.with_suffix(".npz")
                file.write_bytes(storage.pack(weights))
            else:
                torch.save(weights, file)
            row |= {
                "file_bytes": file.stat().st_size,
                "load_ms": milliseconds(lambda file=file: storage.load_weights(file), 20),
            }
            row["resident_bytes"] = sum(map(resident_bytes, weights.values()))
            row["multiply_adds"] = games.multiply_adds(forms["dense" if name == "packed" else name])["dense"]
            row["multiply_adds"] += sum(t.values().numel() for t in weights.values() if t.layout == torch.sparse_csr)
            row["units"] = sum(len(t) for key, t in weights.items() if key.endswith("bias"))
    for threads in sorted({1, len(os.sched_getaffinity(0))} if device.type == "cpu" else {1}):
        torch.set_num_threads(threads)
        for batch in BATCHES:
            for name, us in latencies(forms, batch, args.calls, device).items():
                quartiles = np.percentile(us, (50, 25, 75)).round(1)
                rows[name] |= zip((f"us_{batch}x{threads}{q}" for q in ("", "_q25", "_q75")), quartiles, strict=True)
    return list(rows.values())


def table(rows: pd.DataFrame) -> str:
    """The rows as Markdown: sizes in kB, latencies as medians with their quartiles in microseconds."""
    shown = pd.DataFrame(
        {"run": rows.algorithm + " " + rows.arm, "sparsity": rows.sparsity.map("{:.2f}".format), "form": rows.form}
    )
    shown["file, kB"], shown["memory, kB"] = (
        (rows[f"{name}_bytes"] / 1e3).map("{:,.0f}".format) for name in ("file", "resident")
    )
    shown["load, ms"], shown["units"] = rows.load_ms.map("{:.1f}".format), rows.units
    shown["multiply-adds, millions"] = (rows.multiply_adds / 1e6).map("{:.2f}".format)
    for column in (c for c in rows if c.startswith("us_") and "_q" not in c):
        batch, threads = column.removeprefix("us_").split("x")
        cells = rows[[column, f"{column}_q25", f"{column}_q75"]].itertuples(index=False)
        shown[f"us, batch {batch}, {threads} threads"] = [
            "" if pd.isna(a) else f"{a:.0f} ({b:.0f}-{c:.0f})" for a, b, c in cells
        ]
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def figure(rows: pd.DataFrame, path: Path) -> None:
    """Bytes of each format as shares of the dense file, and latency of dense and CSR form, against sparsity."""
    latency = [c for c in rows if c.startswith("us_") and "_q" not in c]
    _, axes = plt.subplots(1, 1 + len(latency), figsize=(4.2 * (1 + len(latency)), 4), layout="constrained")
    dense = rows[rows.form == "dense"].sort_values("sparsity")
    sizes = dense[dense.prune_type != "random"].groupby("sparsity").mean(numeric_only=True)
    for marker, name in zip("svo^<>Pd", SIZES, strict=True):
        axes[0].plot(sizes.index, sizes[f"{name}_bytes"] / sizes.dense_bytes, marker=marker, ms=4, label=name.replace("_", " "))
    axes[0].axhline(1, color="black", lw=0.8)
    axes[0].set(yscale="log", ylabel="file, as a share of the dense file", xlabel="sparsity (l1)")
    axes[0].legend(fontsize=7)
    for ax, column in zip(axes[1:], latency, strict=True):
        batch, threads = column.removeprefix("us_").split("x")
        for (algorithm, form), part in rows[rows.form.isin(["dense", "csr"])].groupby(["algorithm", "form"]):
            for prune_type, line in (("l1", "-"), ("random", ":")):
                arms = part[part.prune_type.isin(["none", prune_type])].sort_values("sparsity")
                color = (
                    {"dense": "black", "csr": "tab:blue"}[form]
                    if algorithm == "ppo"
                    else {"dense": "grey", "csr": "tab:orange"}[form]
                )
                ax.plot(
                    arms.sparsity, arms[column], line, marker="o", ms=3, color=color, label=f"{algorithm} {form}, {prune_type}"
                )
        ax.set(title=f"batch {batch}, {threads} thread{'s' * (threads != '1')}", xlabel="sparsity", ylim=(0, None))
        ax.set_ylabel("forward pass, us (median)")
        ax.legend(fontsize=7)
    plt.savefig(path, dpi=150)


def read(path: Path, args: Args) -> list[dict]:
    """The rows of a run folder, measured, or of a CSV file that --csv wrote."""
    if (path / "summary.json").is_file():
        return measure(path, args)
    rows = pd.read_csv(path).to_dict("records") if path.is_file() and path.suffix == ".csv" else [{}]
    if not all({"form", "sparsity", "packed_bytes"} <= row.keys() for row in rows):
        raise ValueError(f"runs must be folders of finished runs, or CSV files of --csv, got {path}")
    return rows


def main(args: Args) -> None:
    if not args.runs:
        raise ValueError("runs must be at least one run folder or CSV file, got none")
    if args.calls < ROUNDS:
        raise ValueError(f"--calls must be at least {ROUNDS}, got {args.calls}")
    for option, out in (("csv", args.csv), ("figure", args.figure)):  # not after minutes of measuring
        if out and not os.access(out.parent, os.W_OK | os.X_OK):
            raise ValueError(f"--{option} must lie in a folder that can be written, got {out}")
    if args.figure and args.figure.suffix not in (".png", ".svg"):
        raise ValueError(f"--figure must end in .png or .svg, got {args.figure}")
    rows = []
    for path in args.runs:
        rows += read(path, args)
        print(f"read {path}", file=sys.stderr)
    frame = pd.DataFrame(rows)
    print(table(frame))
    if args.csv:
        frame.to_csv(args.csv, index=False)
    if args.figure:
        figure(frame, args.figure)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
