"""Run folders in the format of real ones, made in a moment, and the report made from them."""

import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import report
from prune_utils.evaluation import statistics
from prune_utils.run import arm as arm_of
from prune_utils.run import default_run_name
from tests.conftest import SCRIPTS

LOSS = {
    "dqn": ["td_loss", "q_values"],
    "ppo": ["policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "explained_variance"],
}
NO_SKILL = """env_id,policy,epsilon,games,mean,low,high
SpaceInvadersNoFrameskip-v4,random,1,100,30,25,35
SpaceInvadersNoFrameskip-v4,NOOP,0.01,100,5,4,6
SpaceInvadersNoFrameskip-v4,FIRE,0.01,100,50,45,55
"""


def write_run(runs_dir: Path, algorithm: str = "dqn", arm: str = "none", seed: int = 1, **given) -> Path:
    """A run folder: a small file of each kind, with the options of the declared design.

    `given` may hold options and resolved values that differ from the defaults, and:

    - final, before, after: returns of evaluation games
    - training: (step, return) per game; or score: the return of each after the cut (before it they are those of the seed)
    - shares, health: of the commonest action, and inside the network, at each moment
    - steps, log_every, compress, finished
    """
    script = SCRIPTS[algorithm]
    final, steps = given.pop("final", [100.0, 120.0]), given.pop("steps", 2000)
    scores = {
        "before_prune": given.pop("before", [90.0 + seed, 110.0]),
        "after_prune": given.pop("after", final),
        "final": final,
    }
    after_cut = given.pop("score", 100.0)
    training = [(step, 100.0 + seed if step <= steps // 2 else after_cut) for step in range(10, steps + 1, 10)]
    training = given.pop("training", training)
    log_every, compress, finished = given.pop("log_every", 100), given.pop("compress", False), given.pop("finished", True)
    shares, health = given.pop("shares", {}), given.pop("health", {})
    kind, structured, rate = arm.partition("-structured")
    kind, _, rate = (f"{kind}-structured", "-", rate[1:]) if structured else arm.partition("-")
    rate, _, fork_seed = rate.partition("fork")
    made = {"prune_type": kind, "seed": seed} | ({"prune_rate": float(rate.strip("-"))} if rate.strip("-") else {})
    made |= {"fork_from": "runs/parent", "fork_seed": int(fork_seed)} if fork_seed else {}
    resolved = {"device": "cpu", "precision": "fp32", "num_threads": 1, "torch": "2.13.0", "ale_py": "0.12.1"}
    resolved |= {"source_sha256": hashlib.sha256(b"script").hexdigest()}
    resolved |= {name: given.pop(name) for name in resolved if name in given}
    machine = {"device_name": given.pop("device_name", "a CPU"), "versions": {"numpy": given.pop("numpy", "2.4.6")}}
    made |= given
    args = script.Args(**{name: value for name, value in made.items() if name in script.Args.__dataclass_fields__})
    folder = Path(runs_dir) / (args.run_name or default_run_name(args))
    folder.mkdir(parents=True)
    config = {"algorithm": algorithm, "options": asdict(args), "resolved": resolved} | machine
    (folder / "config.json").write_text(json.dumps(config))
    cut, identity = steps // 2, arm_of(algorithm, asdict(args))
    total = {"conv1.weight": 1000, "fc1.weight": 9000 * args.hidden_size // 512, "fc1.bias": 10}
    rates = {name: identity["effective_prune_rate"] * (args.prune_bias or name.endswith("weight")) for name in total}
    counts = {name: {"total": n, "pruned": round(rates[name] * n)} for name, n in total.items()}
    tensors = {name: c | {"nonzero": c["total"] - c["pruned"]} for name, c in counts.items()}
    sums = {key: sum(c[key] for c in tensors.values()) for key in ("total", "pruned", "nonzero")}
    disk = {"dense": 4 * sums["total"], "coo": 20 * sums["nonzero"], "csr_int64": 12 * sums["nonzero"] + 100}
    disk["csr_int32"] = 8 * sums["nonzero"] + 100
    played = [
        {"moment": moment, "global_step": steps if moment == "final" else cut, "episode": k, "seed": k, "return": float(value)}
        for moment, values in scores.items()
        for k, value in enumerate(values)
    ]
    played = pd.DataFrame(played).assign(length=500, truncated=False)
    played.to_csv(folder / "eval.csv", index=False, lineterminator="\n")
    logged = [(step, "charts/episodic_return", value) for step, value in training]
    logged += [
        (s, f"losses/{tag}", np.sin(s) + 1e3 / (s + 1e3))
        for s in range(log_every, steps + 1, log_every)
        for tag in LOSS[algorithm]
    ]
    logged += [(s, f"health/{name}", value) for s in range(cut + 200, steps + 1, 200) for name, value in health.items()]
    logged += [(cut, "prune/sparsity", sums["pruned"] / sums["total"])]
    logged = sorted(logged, key=lambda row: row[0]) + [(steps, f"disk/{name}_bytes", size) for name, size in disk.items()]
    text = "global_step,tag,value\n" + "".join(f"{step},{tag},{float(value)!r}\n" for step, tag, value in logged)
    if compress:
        (folder / "curves.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    else:
        (folder / "curves.csv").write_text(text)
    if finished:
        result = identity | {"global_step": steps, "agent_steps_run": steps, **sums, "sparsity": sums["pruned"] / sums["total"]}
        result |= {"emptied": [], "tensors": tensors, "resident_bytes": 4 * sums["total"], "disk": disk}
        result["eval"] = {moment: statistics(list(map(float, values))) for moment, values in scores.items()}
        for moment, share in shares.items():
            result["eval"][moment]["commonest_action_share"] = share
        for moment in scores if health else ():
            result["eval"][moment]["health"] = health
        result["multiply_adds"] = {"dense": 2 * sums["total"], "nonzero": 2 * sums["nonzero"]}
        time = {"agent_steps_per_second_while_learning": 200.0 + seed, "wall_seconds": 1.0, "peak_ram_bytes": 10**9 + seed}
        result["time"] = time | {"peak_gpu_bytes": None}
        (folder / "summary.json").write_text(json.dumps(result))
    return folder


def study(runs_dir: Path, arms: dict[str, list[float]], algorithm: str = "dqn", **given) -> Path:
    """Runs of each arm, a score per seed: that of each training game after the cut and, 10 more or less, of two final games."""
    for arm, scores in arms.items():
        for seed, score in enumerate(scores, 1):
            write_run(runs_dir, algorithm, arm, seed, **({"final": [score - 10, score + 10], "score": score} | given))
    return runs_dir


def conclude(*places: Path, out: Path | None = None, no_skill: str = NO_SKILL, **options) -> dict[str, pd.DataFrame]:
    """The tables of a report, by name."""
    out = out or places[0].parent / f"report of {places[0].name}"
    floor = out.parent / "no_skill.csv"
    floor.write_text(no_skill)
    report.report(report.Args(runs=places, out=out, no_skill=floor, **options))
    return {file.stem: pd.read_csv(file) for file in out.glob("*.csv")}


def named(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Why each run that is not used like the others is not."""
    table = tables.get("named", pd.DataFrame(columns=["what", "name", "reason"]))
    return {row["name"]: f"{row.what}: {row.reason}" for _, row in table.iterrows()}


def row(table: pd.DataFrame, arm: str) -> pd.Series:
    (found,) = (row for _, row in table.iterrows() if row.arm == arm)
    return found


def text(folder: Path) -> str:
    return (folder / "conclusions.md").read_text()


DENSE, L1 = [100.0, 110.0, 120.0], [90.0, 105.0, 96.0]
CONTROL = {"l1-0.9": [40.0, 52.0, 45.0]}
"""an arm in which a loss is seen"""
