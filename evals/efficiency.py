"""What a pruned network costs: bytes on disk, time to load, memory of its weights, multiply-adds, and latency, in each form.

    python evals/efficiency.py runs/NAME...                                # a table
    python evals/efficiency.py runs/* --csv costs.csv --figure costs.png   # its rows; bytes and latency against sparsity
    python evals/efficiency.py costs.csv --figure costs.png                # the same figure, of rows measured before

Forms of the same function in fp32: `dense`, model.pt as trained, zeros in place; `packed`, the same network from
model_packed.npz; `csr`, its linear layers as CSR with 32-bit indices; `without_dead_units`, units that can't matter taken out
of it. On a GPU also `2:4`, fc1 in half precision with the two largest of each four weights, which is another function.
"""

import copy
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
from matplotlib.ticker import LogLocator, NullFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import dqn_atari_prune
import ppo_atari_prune
from evals import games, storage

BATCHES = (1, 64)
ROUNDS = 10
SIZES = [*list(storage.FORMATS)[1:], "zlib_of_dense", "zstd_of_dense", "packed"]
NETWORKS = {"dqn": (dqn_atari_prune, dqn_atari_prune.QNetwork), "ppo": (ppo_atari_prune, ppo_atari_prune.Agent)}
COLUMNS = {
    "algorithm",
    "arm",
    "prune_type",
    "sparsity",
    "form",
    "device",
    "torch",
    *(f"{name}_bytes" for name in SIZES),
    "dense_bytes",
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or CSV files that --csv wrote; at least one"""
    calls: int = 200
    """timed forward passes of each form, batch size and number of threads, a multiple of 10; all forms in turn"""
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
        self.register_buffer("bias", dense.bias.detach())
        self.register_buffer("weight", storage.csr(dense.weight.detach(), torch.int32))

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
            views = [r.weight.view(len(r.weight), len(layer.weight), -1) for r in readers]  # (outputs, units, positions)
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
    """An fp16 network's fc1 as NVIDIA's 2:4 semi-structured matrix: the two largest of each four weights. Another function."""
    network = copy.deepcopy(network)
    fours = network.fc1.weight.detach().view(-1, 4)
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
                with torch.inference_mode():
                    network(obs)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_ >= 0:
                    times[name].append(1e6 * (time.perf_counter() - began))
    return {name: np.array(us) for name, us in times.items()}


def measure(folder: Path, args: Args) -> list[dict]:
    """A row for each form of the network of a run folder."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        keys = ("algorithm", "env_id", "arm", "prune_type", "effective_prune_rate", "seed", "sparsity")
        row = {key: summary[key] for key in keys}
        script, network_class = NETWORKS[row["algorithm"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/summary.json is not that of a run ({type(error).__name__}: {error})") from None
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    network, _ = games.load(script, network_class, folder, None)
    row |= {"device": script.device_name(device.type), "torch": torch.__version__}
    row |= {f"{name}_bytes": size for name, size in storage.storage_bytes(network.state_dict()).items()}
    network = network.to(device)
    forms = {"dense": network, "csr": with_csr(network), "without_dead_units": without_dead_units(network)}
    rows = {name: row | {"form": name, "precision": "fp32"} for name in ("dense", "packed", "csr", "without_dead_units")}
    with tempfile.TemporaryDirectory() as scratch:
        for name, told in rows.items():
            form = forms["dense" if name == "packed" else name]
            weights, file = {key: t.cpu() for key, t in tensors(form).items()}, Path(scratch) / name
            if name == "packed":
                file = file.with_suffix(".npz")
                file.write_bytes(storage.pack(weights))
            else:
                torch.save(weights, file)
            told |= {
                "file_bytes": file.stat().st_size,
                "load_ms": milliseconds(lambda file=file: storage.load_weights(file), 20),
            }
            told["resident_bytes"] = sum(map(resident_bytes, weights.values()))
            told["multiply_adds"] = games.multiply_adds(form)["dense"]
            told["multiply_adds"] += sum(t.values().numel() for t in weights.values() if t.layout == torch.sparse_csr)
            told["units"] = sum(len(t) for key, t in weights.items() if key.endswith("bias"))
    if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0) and len(network.fc1.weight) % 64 == 0:
        half = script.working_copy(network, torch.float16)
        forms |= {"dense, fp16": half, "2:4, fp16": with_two_of_four(half)}  # timed only
        rows |= {name: row | {"form": name, "precision": "fp16"} for name in ("dense, fp16", "2:4, fp16")}
    for threads in sorted({1, len(os.sched_getaffinity(0))} if device.type == "cpu" else {1}):
        torch.set_num_threads(threads)
        for batch in BATCHES:
            for name, us in latencies(forms, batch, args.calls, device).items():
                quartiles = np.percentile(us, (50, 25, 75)).round(1)
                rows[name] |= zip((f"us_{batch}x{threads}{q}" for q in ("", "_q25", "_q75")), quartiles, strict=True)
    return list(rows.values())


def timed(rows: pd.DataFrame) -> dict[str, str]:
    """The columns of median latencies, and what to call them."""
    columns = [c.removeprefix("us_").split("x") for c in rows if c.startswith("us_") and "_q" not in c]
    return {f"us_{batch}x{n}": f"batch {batch}, {n} thread{'s' * (n != '1')}" for batch, n in columns}


def table(rows: pd.DataFrame) -> str:
    """The rows as Markdown: sizes in kB, latencies as medians with their quartiles in microseconds."""

    def cells(name: str, spec: str, scale: float = 1) -> list[str]:
        return ["" if pd.isna(x) else format(x / scale, spec) for x in rows[name]]

    shown = {"run": rows.algorithm + " " + rows.arm, "sparsity": cells("sparsity", ".2f"), "form": rows.form}
    shown |= {f"{name}, kB": cells(f"{key}_bytes", ",.0f", 1e3) for key, name in (("file", "file"), ("resident", "memory"))}
    shown |= {"load, ms": cells("load_ms", ".1f"), "units": cells("units", ".0f")}
    shown["multiply-adds, millions"] = cells("multiply_adds", ".2f", 1e6)
    for column, name in timed(rows).items():
        parts = [cells(f"{column}{q}", ".0f") for q in ("", "_q25", "_q75")]
        shown[f"us, {name}"] = [f"{a} ({b}-{c})" if a else "" for a, b, c in zip(*parts, strict=True)]
    return games.markdown(pd.DataFrame(shown))


def crossings(rows: pd.DataFrame) -> str:
    """As Markdown: the sparsity from which on each format is smaller than the dense file, and CSR layers are faster."""
    told: dict[str, dict[str, str]] = {}
    for label, arms in curves(rows):
        dense = medians(arms, "dense")
        ratios = {f"file as {name.replace('_', ' ')}": dense[f"{name}_bytes"] / dense.dense_bytes for name in SIZES}
        csr = medians(arms, "csr")
        ratios |= {f"CSR layers, {name}": csr[column] / dense[column] for column, name in timed(rows).items()}
        told["smaller or faster than dense from this sparsity on"] = {name: name for name in ratios}
        told[label] = {
            name: "never" if (least := storage.crossing(ratio.index, ratio)) is None else f"{least:.2f}"
            for name, ratio in ratios.items()
        }
    return games.markdown(pd.DataFrame(told)) if told else "no pruned run: nothing to tell from which sparsity on what pays\n"


def medians(arms: pd.DataFrame, form: str) -> pd.DataFrame:
    """By sparsity, of all runs of a form."""
    return arms[arms.form == form].groupby("sparsity").median(numeric_only=True)


def curves(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each algorithm and criterion, and each device where there are several, with its arms and the unpruned ones."""
    found = []
    for (device, algorithm), part in rows.groupby(["device", "algorithm"]):
        for kind in [kind for kind in ("l1", "random") if (part.prune_type == kind).any()]:
            label = f"{algorithm}, {kind}" + f", {device}" * (rows.device.nunique() > 1)
            found.append((label, part[part.prune_type.isin(["none", kind])]))
    return found


def figure(rows: pd.DataFrame, path: Path) -> None:
    """Against sparsity: bytes of each format as shares of the dense file, and latencies as shares of that of the same run."""
    names = timed(rows)
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(3.6 * (1 + len(names)), 4.2), layout="constrained")
    criterion = "l1" if (rows.prune_type == "l1").any() else "random"
    dense = medians(rows[rows.prune_type.isin(["none", criterion])], "dense")
    fine = np.linspace(dense.index[0], dense.index[-1], 200)
    for k, name in enumerate(SIZES):
        shares = dense[f"{name}_bytes"] / dense.dense_bytes
        axes[0].plot(fine, np.interp(fine, dense.index, shares), color=f"C{k}", lw=1)  # straight in bytes, bent on this axis
        axes[0].plot(dense.index, shares, "svo^<>Pd"[k], color=f"C{k}", ms=4, label=name.replace("_", " "))
    axes[0].set(yscale="log", title=f"file of {criterion} arms / dense file", xlabel="sparsity")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].legend(fontsize=7)
    for ax, (column, name) in zip(axes[1:], names.items(), strict=True):
        for k, (label, arms) in enumerate(curves(rows)):
            for form, line, colours in (("csr", "-", "Blues"), ("without_dead_units", "--", "Oranges")):
                ratio = medians(arms, form)[column] / medians(arms, "dense")[column]
                style = {"color": plt.get_cmap(colours)(0.4 + 0.15 * k), "ls": line, "marker": "osDv^P<X>*"[k % 10], "ms": 4}
                ax.plot(ratio.index, ratio, label=f"{form.replace('_', ' ')}: {label}", **style)
        ax.set(title=f"latency / dense, {name}", xlabel="sparsity", ylim=(0, 1.05 * max(1.0, ax.get_ylim()[1])))
    for ax in axes:
        ax.axhline(1, color="black", lw=0.8)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=7)
    plt.savefig(path, dpi=150)


def read(path: Path, args: Args) -> list[dict]:
    """The rows of a run folder, measured, or of a CSV file that --csv wrote."""
    if (path / "summary.json").is_file():
        return measure(path, args)
    rows = pd.read_csv(path) if path.is_file() and path.suffix == ".csv" else pd.DataFrame()
    if not len(rows) or not set(rows) >= COLUMNS or rows[list(COLUMNS)].isna().any(axis=None):
        raise ValueError(f"runs must be folders of finished runs, or CSV files of --csv, got {path}")
    return rows.to_dict("records")


def main(args: Args) -> None:
    if not args.runs:
        raise ValueError("runs must be at least one run folder or CSV file, got none")
    if args.calls < ROUNDS or args.calls % ROUNDS:
        raise ValueError(f"--calls must be a multiple of {ROUNDS}, at least that, got {args.calls}")
    for option, out in (("csv", args.csv), ("figure", args.figure)):  # not after minutes of measuring
        if out and (out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK)):
            raise ValueError(f"--{option} must be a file in a folder that can be written, got {out}")
    if args.figure and args.figure.suffix not in (".png", ".svg"):
        raise ValueError(f"--figure must end in .png or .svg, got {args.figure}")
    if os.getloadavg()[0] > 0.5 and any(path.is_dir() for path in args.runs):
        print(f"warning: other processes are at work (load {os.getloadavg()[0]:.1f}): latencies will show it", file=sys.stderr)
    rows = []
    for path in args.runs:
        rows += read(path, args)
        print(f"read {path}", file=sys.stderr)
    frame = pd.DataFrame(rows)
    where = ", ".join(f"{device}, torch {version}" for device, version in frame.groupby(["device", "torch"]).groups)
    print(f"{where}; fp32 but where a form says fp16; latency: median (quartiles)\n", table(frame), crossings(frame), sep="\n")
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
