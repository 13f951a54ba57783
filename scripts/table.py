"""Print what the cut cost and gained in finished runs, a column a run: python scripts/table.py runs/*"""

import json
import sys
from pathlib import Path

import pandas as pd


def column(summary: dict) -> dict[str, str]:
    """A run's column: returns as mean [95 % interval], zeros, bytes and their ratio to dense, speed."""
    rows = {"game": summary["env_id"], "arm": f"{summary['algorithm']} {summary['arm']}, seed {summary['seed']}"}
    rows["agent steps"] = f"{summary['global_step']:,}"
    for moment, score in summary["eval"].items():
        interval = "" if score["ci95"] is None else " [{:.0f}, {:.0f}]".format(*score["ci95"])
        rows[f"return {moment.replace('_', ' ')} ({score['n']} games)"] = f"{score['mean']:.1f}{interval}"
    rows["zeros"] = f"{summary['total'] - summary['nonzero']:,} of {summary['total']:,}"
    rows["sparsity"] = f"{summary['sparsity']:.4f}"
    for name, size in summary["disk"].items():
        rows[f"bytes as {name}"] = f"{size:,} ({size / summary['disk']['dense']:.2f}x)"
    speed = summary["time"]["agent_steps_per_second_while_learning"]
    return rows | {"agent steps/s while learning": "-" if speed is None else f"{speed:.0f}"}


def main(folders: list[Path]) -> None:
    finished = [folder for folder in folders if (folder / "summary.json").is_file()]
    for folder in folders:
        if folder not in finished:
            print(f"unfinished: {folder} has no summary.json", file=sys.stderr)
    if not finished:
        reason = "no finished run among the folders given" if folders else "name at least one run folder"
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    table = pd.DataFrame({folder.name: column(json.loads((folder / "summary.json").read_text())) for folder in finished})
    print(table.fillna("-").to_string(justify="left"))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
