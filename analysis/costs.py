"""What pruned networks cost: tables and a figure of the rows that evals.efficiency measured.

    python -m evals.efficiency RUN... --csv costs.csv
    python -m analysis.costs costs.csv --figure costs.png

It prints two Markdown tables: the measurements, and the sparsity from which on each format or form pays.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.figures import crossing
from analysis.table import labels
from analysis.views import markdown
from prune_utils.basics import UserError, check, check_file, exit_codes
from prune_utils.run import CRITERIA

FORMATS = ("coo", "csr_int64", "csr_int32", "bitmask", "bitmask_fp16_lossy", "zlib_of_dense", "zstd_of_dense", "packed")
COLUMNS = {"algorithm", "arm", "seed", "prune_type", "sparsity", "form", "device", "torch", "dense_bytes"}
COLUMNS |= {f"{name}_bytes" for name in FORMATS}
MEASURES = {"file_bytes", "resident_bytes", "load_ms", "units", "multiply_adds"}
"""columns that a CSV file must have, those of MEASURES perhaps without values"""
OF_ENTRIES = [kind for kind in CRITERIA if not kind.endswith("-structured")]
"""criteria whose runs are compared with their own dense form; where units were removed, that is the smaller network"""
RUN = ["file", "run", "algorithm", "arm", "seed"]
"""columns that tell runs apart"""
LATENCY = r"us_(\d+)x(\d+)"
"""columns of median latencies, by batch and threads; their quartiles have _q25 and _q75 at the end"""


@dataclass
class Args:
    csvs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CSV...", help_behavior_hint="(required)")]
    """files that evals.efficiency wrote"""
    figure: Path | None = None
    """PNG or SVG: bytes on disk and latency against sparsity"""


def read(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path)
        numbers = [c for c in rows if c in MEASURES | {"sparsity"} or c.endswith("_bytes") or re.match(LATENCY, c)]
        rows[numbers] = rows[numbers].apply(pd.to_numeric)
    except (OSError, ValueError) as error:
        raise UserError(f"CSV must be a file that evals.efficiency wrote, got {path}: {error}") from None
    needed = COLUMNS | MEASURES | {f"{column}{quartile}" for column in latencies(rows) for quartile in ("_q25", "_q75")}
    if not len(rows) or not set(rows) >= needed or rows[list(COLUMNS)].isna().any(axis=None):
        raise UserError(f"CSV must be a file that evals.efficiency wrote, got {path}: it lacks rows, columns or values")
    if not (kinds := set(rows.prune_type)) <= {"none", *CRITERIA}:
        known, given = ", ".join(CRITERIA), ", ".join(map(str, sorted(kinds, key=str)))
        raise UserError(f"CSV must have runs of prune_type none, {known}, got {given}: {path}")
    if "run" not in rows:  # in files of earlier versions
        rows["run"] = rows.algorithm + " " + rows.arm
    rows["file"] = str(path)
    if not rows.form.eq("dense").groupby([rows[name] for name in RUN]).any().all():
        raise UserError(f"CSV must have the form dense of each run, got {path}")
    if rows.duplicated([*RUN, "form", "device"]).any():
        raise UserError(f"CSV must hold each run once, got {path}: runs of equal name, arm and seed need a file each")
    return rows


def latencies(rows: pd.DataFrame) -> dict[str, str]:
    """The columns of median latencies, and what to call them."""
    found = filter(None, (re.fullmatch(LATENCY, column) for column in rows))
    return {match[0]: f"batch {match[1]}, {match[2]} thread{'s' * (match[2] != '1')}" for match in found}


def table(rows: pd.DataFrame) -> str:
    """The rows as Markdown: sizes in kB, latencies as medians with their quartiles in microseconds."""

    def cells(name: str, spec: str, scale: float = 1) -> list[str]:
        return ["" if pd.isna(x) else format(x / scale, spec) for x in rows[name]]

    names = list(rows.run.unique())
    shown = {
        "run": rows.run.map(dict(zip(names, labels(names), strict=True))),
        "sparsity": cells("sparsity", ".2f"),
        "form": rows.form,
    }
    shown |= {"file, kB": cells("file_bytes", ",.0f", 1e3), "memory, kB": cells("resident_bytes", ",.0f", 1e3)}
    shown |= {"load, ms": cells("load_ms", ".1f"), "units": cells("units", ".0f")}
    shown["multiply-adds, millions"] = cells("multiply_adds", ".2f", 1e6)
    for column, name in latencies(rows).items():
        parts = [cells(f"{column}{q}", ".0f") for q in ("", "_q25", "_q75")]
        shown[f"us, {name}"] = [f"{a} ({b}-{c})" if a else "" for a, b, c in zip(*parts, strict=True)]
    return markdown(pd.DataFrame(shown))


def file_shares(arms: pd.DataFrame, name: str) -> pd.Series:
    """Bytes in a format as a share of the dense file of the same run; the median over runs, by sparsity."""
    dense = arms[arms.form == "dense"]
    return (dense[f"{name}_bytes"] / dense.dense_bytes).groupby(dense.sparsity).median()


def latency_shares(arms: pd.DataFrame, form: str, column: str) -> pd.Series:
    """Latency of a form as a share of that of the dense form of the same run; the median over runs, by sparsity."""
    runs = arms.pivot_table(index=["sparsity", *RUN], columns="form", values=column)
    return (runs[form] / runs["dense"]).groupby("sparsity").median() if form in runs else pd.Series(dtype=float)


def curves(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each algorithm and criterion of entries, and each device where there are several, with its arms and the dense ones."""
    found = {}
    for (device, algorithm), part in rows.groupby(["device", "algorithm"]):
        for kind in [kind for kind in OF_ENTRIES if (part.prune_type == kind).any()]:
            label = f"{algorithm}, {kind}" + f", {device}" * (rows.device.nunique() > 1)
            found[label] = part[part.prune_type.isin(["none", kind])]
    return found


def pays_from(ratio: pd.Series) -> str:
    """The sparsity from which on a ratio stays below 1, as a cell; - where it was not measured."""
    if ratio.empty:
        return "-"
    least = crossing(ratio.index, ratio)
    if least is None:
        return f"above {ratio.index[-1]:.2f}, if at all"
    unknown = bool((ratio < 1).all() and ratio.index[0] > 0)  # whether it pays below what was measured
    return f"{least:.2f}" + " or less" * unknown


def crossings(rows: pd.DataFrame) -> str:
    """As Markdown: the sparsity from which on each format is smaller than the dense file, and CSR layers are faster."""
    told: dict[str, dict[str, str]] = {}
    for label, arms in curves(rows).items():
        ratios = {f"file as {name.replace('_', ' ')}": file_shares(arms, name) for name in FORMATS}
        ratios |= {f"CSR layers, {name}": latency_shares(arms, "csr", column) for column, name in latencies(rows).items()}
        told["smaller or faster than dense from this sparsity on"] = {name: name for name in ratios}
        told[label] = {name: pays_from(ratio.dropna()) for name, ratio in ratios.items()}
    return markdown(pd.DataFrame(told)) if told else "no run with pruned entries: no crossing to show\n"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Against sparsity: bytes of each format as shares of the dense file, and latencies as shares of that of the same run."""
    names = latencies(rows)
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(3.6 * (1 + len(names)), 4.2), layout="constrained", squeeze=False)
    on_disk, in_time = axes[0, 0], axes[0, 1:]
    criterion = next((kind for kind in OF_ENTRIES if (rows.prune_type == kind).any()), "none")
    arms = rows[rows.prune_type.isin(["none", criterion])]
    for k, name in enumerate(FORMATS):
        shares = file_shares(arms, name)
        fine = np.linspace(shares.index[0], shares.index[-1], 200)
        on_disk.plot(fine, np.interp(fine, shares.index, shares), color=f"C{k}", lw=1)  # straight in bytes, bent on this axis
        on_disk.plot(shares.index, shares, "svo^<>Pd"[k], color=f"C{k}", ms=4, label=name.replace("_", " "))
    on_disk.set(yscale="log", title=f"file of {criterion} arms / dense file", xlabel="sparsity")
    on_disk.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    on_disk.yaxis.set_major_formatter("{x:g}")
    on_disk.yaxis.set_minor_formatter(NullFormatter())
    on_disk.legend(fontsize=7)
    for ax, (column, name) in zip(in_time, names.items(), strict=True):
        for k, (label, arms) in enumerate(curves(rows).items()):
            for form, line, colours in (("csr", "-", "Blues"), ("without_dead_units", "--", "Oranges")):
                ratio = latency_shares(arms, form, column)
                style = {"color": plt.get_cmap(colours)(0.4 + 0.15 * k), "ls": line, "marker": "osDv^P<X>*"[k % 10], "ms": 4}
                ax.plot(ratio.index, ratio, label=f"{form.replace('_', ' ')}: {label}", **style)
        ax.set(title=f"latency / dense, {name}", xlabel="sparsity", ylim=(0, 1.05 * max(1.0, ax.get_ylim()[1])))
    for ax in axes.flat:
        ax.axhline(1, color="black", lw=0.8)
    if len(names):
        figure.legend(*in_time[-1].get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m analysis.costs", description=__doc__)
        check(args.figure is None or args.figure.suffix in (".png", ".svg"), "figure", "end in .png or .svg", args.figure)
        if args.figure:
            check_file("figure", args.figure)
        if not args.csvs:
            raise UserError("CSV must be at least one file that evals.efficiency wrote, got none")
        rows = pd.concat([read(path) for path in args.csvs], ignore_index=True)
        where = ", ".join(f"{device}, torch {version}" for device, version in rows.groupby(["device", "torch"]).groups)
        print(f"{where}; fp32 but where a form says fp16; latency: median (quartiles)\n")
        print(table(rows), crossings(rows), sep="\n")
        if args.figure:
            draw(rows, args.figure)


if __name__ == "__main__":
    main()
