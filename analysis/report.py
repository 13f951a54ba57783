"""From run folders to conclusions: figures, tables, sentences and one self-contained page.

    python -m analysis runs/ --out report/
    python -m analysis results/study --out report/ --track               # and to W&B, offline if it is out of reach

It takes run folders and folders above them. Runs that it cannot use or compare are named. It writes index.html, the figures as
PNG and SVG, the tables as Markdown and CSV, conclusions.md, and scores.npz for rliable. `report_files.txt` has the names of
these files: a later report in the same folder replaces no others.
"""

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import tyro

from analysis import figures
from analysis.baseline import baseline_table
from analysis.conclusions import answer, of_aggregate, sentences
from analysis.design import NO_SKILL
from analysis.measures import (
    aggregate_table,
    bins_table,
    comparisons,
    costs_table,
    equal_parameters_table,
    evaluations_table,
    health_table,
    no_skill_table,
    noise_table,
    recovery_table,
    returns_table,
    rliable_scores,
    runs_table,
)
from analysis.no_skill import missing, read_no_skill
from analysis.page import page
from analysis.runs import collect
from analysis.studies import build, group, label_studies
from analysis.views import markdown, view
from prune_utils.basics import UserError, check, exit_codes
from prune_utils.log import init_wandb
from prune_utils.run import check_wandb_mode

MANIFEST = "report_files.txt"


@dataclass
class Args:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")]
    """run folders, or folders that hold them at any depth"""
    out: Path = Path("report")
    """folder to write: new, empty, or that of an earlier report; only files that a report wrote are replaced or deleted"""
    window: int = 50
    """length of the moving means, at least 1: in games for the return, in logged rows for the losses"""
    no_skill: Path = NO_SKILL
    """CSV file of evals.no_skill; a game that is not in it gets no declared answer"""
    track: bool = False
    """log figures and tables to Weights & Biases too; offline when it cannot be reached"""
    wandb_project_name: str = "atari-prune"
    """the W&B project"""
    wandb_entity: str | None = None
    """the W&B team or user; None is the default one of the account"""


# ----------------------------------------------------------------------------------------------------- the folder's files
def earlier_files(out: Path) -> set[str]:
    """Names of the files that an earlier report wrote here, from its manifest; empty where there is none."""
    manifest = out / MANIFEST
    names = manifest.read_text().splitlines() if manifest.is_file() else []
    return {name for name in names if Path(name).name == name}


def make_room(out: Path) -> None:
    """Create the folder of the report. Raises UserError if it holds something else or cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        check(earlier_files(out) or not any(out.iterdir()), "out", "be new, empty or an earlier report", out)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be written, got {out}: {error.strerror}") from None
    check(os.access(out, os.W_OK | os.X_OK), "out", "be a folder that can be written", out)


def publish(made: Path, out: Path) -> None:
    """Copy the files of a report into its folder, and delete those of the earlier report that are no longer made.

    Raises UserError, and changes nothing, if a file that no report wrote has one of these names. Until all is copied, the
    manifest has the old and the new names, so that the next report can replace what an interrupted one left.
    """
    earlier = earlier_files(out)
    names = {MANIFEST, *(file.name for file in made.iterdir())}
    for name in sorted(names - earlier):
        check(not os.path.lexists(out / name), "out", f"hold no {name} but a report's, which would replace it", out)
    (out / MANIFEST).write_text("".join(f"{name}\n" for name in sorted(earlier | names)))
    for name in earlier - names:
        (out / name).unlink(missing_ok=True)
    for file in sorted(made.iterdir()):
        shutil.copyfile(file, out / file.name)
    (out / MANIFEST).write_text("".join(f"{name}\n" for name in sorted(names)))


# ------------------------------------------------------------------------------------------------------------- the report
def track(args: Args, tables: dict[str, pd.DataFrame]) -> None:
    import wandb

    config = {"runs": list(map(str, args.runs)), "window": args.window}
    project = {"project": args.wandb_project_name, "entity": args.wandb_entity, "dir": str(args.out)}
    run = init_wandb(name=args.out.resolve().name, job_type="report", config=config, **project)
    try:
        run.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in sorted(args.out.glob("*.png"))})
        run.log({f"tables/{name}": wandb.Table(dataframe=table.astype(str)) for name, table in tables.items()})
        run.log({"report": wandb.Html((args.out / "index.html").read_text(), inject=False)})
        run.finish()
    except Exception as error:  # whatever a strange answer makes the client say: the folder has everything
        print(f"the upload to W&B did not finish ({type(error).__name__}: {error})", file=sys.stderr)


def report(args: Args) -> None:
    check(1 <= args.window < 2**31, "window", "be at least 1 and below 2**31", args.window)
    check(args.no_skill == NO_SKILL or args.no_skill.is_file(), "no_skill", "be a file that exists", args.no_skill)
    if args.track:
        check_wandb_mode()
    runs, named = collect(args.runs, args.window)
    if not any(run.finished for run in runs):
        for what, name, reason in named:
            print(f"{what}: {name}: {reason}", file=sys.stderr)
        raise UserError(f"RUNS must hold a finished run, got {', '.join(map(str, args.runs)) or 'nothing'}")
    studies = group(runs)
    label_studies(studies)
    for study in studies:
        build(study, runs, named)
    studies = [study for study in studies if study.arms]
    no_skill = read_no_skill(args.no_skill)
    games = dict.fromkeys(study.first.env_id for study in studies)
    floors = [no_skill[env_id].in_words if env_id in no_skill else missing(env_id) for env_id in games]

    rows: dict[str, list[dict]] = defaultdict(list)
    answers, conclusions = [], {}
    for study in studies:
        floor = no_skill.get(study.first.env_id)
        changes, trends, variants = comparisons(study)
        own = {"changes": changes, "variants": variants, "returns": returns_table(study, floor)}
        own |= {"evaluations": evaluations_table(study, floor), "noise": noise_table(study), "trend": trends}
        own |= {"bins": bins_table(study), "recovery": recovery_table(study), "costs": costs_table(study)}
        own |= {"equal_parameters": equal_parameters_table(study), "health": health_table(study)}
        own |= {"baseline": baseline_table(study)}
        answers.append((study, answer(study, own["changes"], own["returns"], floor)))
        conclusions[study.label] = sentences(study, answers[-1][1], own, floor)
        for name, table in own.items():
            rows[name] += table
    rows |= {"no_skill": no_skill_table({game: no_skill[game] for game in games if game in no_skill})}
    rows |= {"aggregate": aggregate_table(studies), "runs": runs_table(studies), "named": [n._asdict() for n in named]}
    for row in rows["aggregate"]:
        conclusions.setdefault(f"Over several games: {row['studies']}", []).append(of_aggregate(row))
    rows = {name: table for name, table in rows.items() if table}
    tables = {name: view(name, table) for name, table in rows.items()}
    lines = []
    for label, points in conclusions.items():
        lines += [f"## {label}", "", *(f"- {sentence}" for sentence in points), ""]
    lines += [f"- {what}: {name}: {reason}" for what, name, reason in named]

    make_room(args.out)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for name in rows:
            pd.DataFrame(rows[name]).to_csv(made / f"{name}.csv", index=False, lineterminator="\n")
            (made / f"{name}.md").write_text(markdown(tables[name]))
        np.savez(made / "scores.npz", **rliable_scores(studies))
        (made / "conclusions.md").write_text("\n".join(lines) + "\n")
        left_out = figures.draw(studies, made, args.window, no_skill)
        (made / "index.html").write_text(page(answers, floors, conclusions, left_out, tables, made, args.window))
        publish(made, args.out)
    if args.track:
        track(args, tables)
    print("\n".join(lines))
    print(f"{sum(len(study.arm_runs) for study in studies)} runs; all of it is in {args.out / 'index.html'}")


def main() -> None:
    with exit_codes():
        report(tyro.cli(Args, prog="python -m analysis", description=__doc__))
