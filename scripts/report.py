"""From run folders to conclusions: figures, tables, sentences and one self-contained page.

    python scripts/report.py runs/ --out report/
    python scripts/report.py results/study --out report/ --track               # and to W&B, offline if it is out of reach

Takes run folders and folders above them, finished runs and others, and names what it cannot use or compare. It writes
index.html, the figures as PNG and SVG, the tables as Markdown and CSV, scores.npz for rliable, and conclusions.md.
"""

import base64
import html
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from evals import games
from ppo_atari_prune import UserError, init_wandb, require
from scripts import figures, paired
from scripts.paired import MARGIN
from scripts.studies import (
    CONTROLS,
    DECLARED,
    Study,
    aggregate_table,
    build,
    collect,
    costs_table,
    group,
    label_studies,
    recovery_table,
    returns_table,
    rliable_scores,
    runs_table,
    trend_table,
)

OURS = '<meta name="generator" content="atari-prune report">'
LOSSES = {
    "dqn": {"losses/td_loss": "TD loss", "losses/q_values": "mean Q value"},
    "ppo": {
        "losses/policy_loss": "policy loss",
        "losses/value_loss": "value loss",
        "losses/entropy": "entropy",
        "losses/approx_kl": "approximate KL",
        "losses/clipfrac": "share clipped",
        "losses/explained_variance": "explained variance",
    },
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or folders that hold them at any depth"""
    out: Path = Path("report")
    """folder to write: new, empty, or that of an earlier report, whose figures, tables and pages are all replaced"""
    window: int = 50
    """games of the moving mean of the training return, and logged rows of that of the losses, at least 1"""
    track: bool = False
    """log figures and tables to Weights & Biases too; offline when it cannot be reached"""
    wandb_project_name: str = "atari-prune"
    """the W&B project"""
    wandb_entity: str | None = None
    """the W&B team or user; None is the default one of the account"""


# ---------------------------------------------------------------------------------------------------------------- tables
def number(value, spec: str = ",.0f") -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, float) and np.isinf(value):
        return "not within the run"
    return format(value, spec)


def span(row: dict, name: str, spec: str = ",.0f") -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "-" if number(low) == "-" else f"{format(low, spec)} to {format(high, spec)}"


COLUMNS = {
    "study": ("study", ""),
    "studies": ("studies", ""),
    "arm": ("arm", ""),
    "role": ("role", ""),
    "criterion": ("criterion", ""),
    "rates": ("rates", ""),
    "seed": ("seed", ""),
    "seeds": ("seeds", ""),
    "judged": ("seeds", ""),
    "pairs": ("pairs", ""),
    "games": ("games a seed", ""),
    "run": ("run", ""),
    "name": ("run", ""),
    "what": ("what", ""),
    "reason": ("reason", ""),
    "before_prune": ("before the cut", ",.1f"),
    "after_prune": ("right after", ",.1f"),
    "final": ("at the end", ",.1f"),
    "std": ("deviation", ",.1f"),
    "final~": ("95 % interval", ",.0f"),
    "difference": ("difference to the twin", "+,.1f"),
    "difference~": ("95 % interval of it", "+,.0f"),
    "difference_std": ("deviation of the differences", ",.1f"),
    "change": ("in per cent of dense", "+.1%"),
    "change~": ("95 % interval in per cent", "+.1%"),
    "p": ("p", ".3f"),
    "p_holm": ("p, Holm", ".3f"),
    "p_not_worse": (f"p of a loss of {100 * MARGIN:g} % or more", ".3f"),
    "detectable": ("smallest difference that would be seen", ",.0f"),
    "detectable_change": ("the same in per cent of dense", ".0%"),
    "slope": ("change of the return for each 0.1 of rate", "+,.1f"),
    "slope~": ("95 % interval", "+,.1f"),
    "level": ("level before the cut", ",.0f"),
    "back": ("seeds back at it", ""),
    "steps_until_back": ("agent steps until then, median", ",.0f"),
    "area": ("area lost, return x agent steps", ",.0f"),
    "area_share": ("in per cent of level x steps left", ".1%"),
    "after": ("training return after the cut", ",.1f"),
    "after~": ("95 % interval", ",.0f"),
    "iqm": ("interquartile mean of the change", "+.1%"),
    "iqm~": ("95 % bootstrap interval", "+.1%"),
    "total": ("entries", ",.0f"),
    "zeros": ("zeros", ",.0f"),
    "emptied": ("emptied tensors", ""),
    "resident_bytes": ("bytes of the weights in memory", ",.0f"),
    "multiply_adds_dense": ("multiply-adds", ",.0f"),
    "multiply_adds_nonzero": ("multiply-adds not by zero", ",.0f"),
    "agent_steps_per_second_while_learning": ("agent steps a second", ",.1f"),
    "peak_ram_bytes": ("peak RAM, bytes", ",.0f"),
    "peak_gpu_bytes": ("peak GPU memory, bytes", ",.0f"),
    "mean_gpu_utilisation_percent": ("GPU utilisation, %", ".0f"),
}
"""heading and format of each column; a name that ends in ~ is an interval"""
VIEWS = {
    "returns": "study arm role seeds games before_prune after_prune final std final~ pairs difference difference~ "
    "difference_std change change~ p p_holm p_not_worse detectable detectable_change",
    "trend": "study criterion role rates seeds slope slope~ change change~ p p_holm",
    "recovery": "study arm judged level back steps_until_back area area_share after after~ difference difference~",
    "aggregate": "studies arm games pairs iqm iqm~",
    "costs": "study arm seeds total zeros emptied disk_* resident_bytes multiply_adds_dense multiply_adds_nonzero "
    "agent_steps_per_second_while_learning peak_ram_bytes peak_gpu_bytes mean_gpu_utilisation_percent",
    "runs": "study arm seed run games before_prune after_prune final after",
    "named": "what name reason",
}


def view(name: str, rows: list[dict]) -> pd.DataFrame:
    """The table as it is read: rounded, intervals in one cell, without columns that nothing measured."""
    formats = dict.fromkeys(key for row in rows for key in row if key.startswith("disk_"))
    shown = {}
    for key in VIEWS[name].replace("disk_*", " ".join(formats)).split():
        plain = f"bytes, {key.removeprefix('disk_').replace('_', ' ')}", ",.0f"
        heading, spec = COLUMNS.get(key, plain)
        shown[heading] = [span(row, key[:-1], spec) if key[-1] == "~" else number(row.get(key), spec) for row in rows]
    return pd.DataFrame({heading: column for heading, column in shown.items() if set(column) - {"-", ""}})


# ------------------------------------------------------------------------------------------------------------- sentences
def in_words(row: dict, name: str) -> str:
    """A change, its interval, and what that excludes: in per cent where the dense mean is surely above 0, else in points.

    One arm of many that differs by its own interval is called so only if Holm's correction bears it out.
    """
    seeds = row.get("pairs", row.get("seeds"))
    relative = number(row["change_low"]) != "-" or (seeds == 1 and number(row["change"]) != "-")
    kind, unit, scale = ("change", "%", 100) if relative else ("difference", "points", 1)
    middle, low, high = (scale * row[f"{kind}{end}"] for end in ("", "_low", "_high"))
    digits = 1 if np.nanmin(np.abs([middle, low, high])) < 1 or high - low < 10 else 0
    if np.isnan(low):
        return f"{name}: {middle:+.{digits}f} {unit} in {'one seed' if seeds == 1 else f'each of {seeds} seeds: no interval'}"
    least, most = f"{abs(low):.{digits}f} {unit}", f"{abs(high):.{digits}f} {unit}"
    told = f"{name}: {middle:+.{digits}f} {unit} (95 % interval {low:+.{digits}f} to {high:+.{digits}f})"
    corrected = row["role"] == "exploratory" and not row["p_holm"] < 1 - paired.LEVEL
    seen = "by this interval alone, not after Holm's correction" if corrected else "is seen"
    if high < 0:
        return f"{told}; a loss of at least {most} {seen}, one above {least} is excluded"
    if low > 0:
        return f"{told}; a gain of at least {least} {seen}, one above {most} is excluded"
    return f"{told}; a loss above {least} is excluded, a smaller one is not"


def verdict(row: dict) -> str:
    """Whether the declared contrast excludes a loss of the margin."""
    if row["pairs"] == 1:
        return "one seed cannot tell"
    if np.isnan(row["change_low"]):  # dense may be at 0 or below, or the share is the same in every seed
        return "the share has no interval"
    if row["change_high"] < -MARGIN:
        return "seen"
    excluded = "excluded" if row["p_not_worse"] < (1 - paired.LEVEL) / 2 else "not excluded"
    return f"{excluded} (one-sided p = {number(row['p_not_worse'], '.2g')})"


def in_training(rows: list[dict]) -> list[str]:
    """A sentence of what the arms earned in training after the cut: it averages over the networks that a run passes through."""
    told = []
    for row in rows:
        if row.get("pairs"):
            kind, unit, scale = ("difference", "points", 1) if np.isnan(row["change"]) else ("change", "%", 100)
            middle, low, high = (scale * row[f"{kind}{end}"] for end in ("", "_low", "_high"))
            sure = "" if np.isnan(low) else f" (95 % interval {low:+.1f} to {high:+.1f})"
            told.append(f"{row['arm']} {middle:+.1f} {unit}{sure}")
    return [f"Exploratory, in training from the cut to the end: {'; '.join(told)}."] if told else []


def sentences(study: Study, rows: list[dict], trends: list[dict], recoveries: list[dict]) -> list[str]:
    """What a study is, what was found, how sure it is, and what could not have been seen: the declared contrast first."""
    settings = ", ".join(f"{k} {v}" for k, v in study.off_default.items() if k != "env_id") or "none"
    found = [("dense", f"{study.steps:,} agent steps; options of all runs off their default: {settings}; {study.machines}.")]
    order = ["dense", "one seed", "declared", "trend", "A/A", "positive control", "exploratory"]
    for row in rows:
        if row["role"] == "dense" and row["seeds"]:
            sure = f" (95 % interval {span(row, 'final')})" if number(row["final_low"]) != "-" else ""
            counted = f"{row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'} of {row['games']} games"
            found.append(("dense", f"Dense networks end at {number(row['final'])}{sure}: {counted}."))
        if not row["pairs"]:
            continue
        criterion, _, rest = row["arm"].partition("-")
        if row["role"] == "A/A":
            told = in_words(row, f"{row['arm']}, which only draws other random numbers from the cut on").partition(";")[0]
            spread = f", deviation between seeds {number(row['difference_std'])} points" if row["pairs"] > 1 else ""
            found.append(("A/A", f"A/A: {told}{spread}."))
            continue
        told = in_words(row, f"{criterion} at {rest}")
        if row["pairs"] > 1:
            holm = f", p = {number(row['p_holm'], '.2g')} after Holm" if row["role"] != "declared" else ""
            share = f" ({row['detectable_change']:.0%} of dense)" if number(row["detectable_change"]) != "-" else ""
            power = f"; 80 % power for a difference of {number(row['detectable'])} points{share}"
            told += f". {row['pairs']} pairs" + (holm + power if number(row["detectable"]) != "-" else "")
        if row["role"] == "declared":
            told += f". A loss of {100 * MARGIN:g} % or more: {verdict(row)}"
        found.append((row["role"], f"{row['role'].capitalize()}: {told}."))
    if any(row["pairs"] == 1 for row in rows):
        told = "One seed has no interval: how far seeds differ is unknown, so that no loss or gain of any size is excluded."
        found.append(("one seed", told))
    for row in trends:
        slope = {f"difference{end}": row[f"slope{end}"] for end in ("", "_low", "_high")}
        name = f"{row['role'].capitalize()}, trend of {row['criterion']} over {row['rates']} for each 0.1 of rate"
        found.append(("trend", f"{in_words(row | slope, name)}."))
    return [told for _, told in sorted(found, key=lambda pair: order.index(pair[0]))] + in_training(recoveries)


METHOD = f"""
The sample is the seeds: n counts seeds (pairs), never arms or games. A score is the mean return of a run's evaluation games
at a moment. Intervals of means are 95 % t intervals over seeds. Up to the cut an arm and the dense run of its seed are one
run, so an arm is compared with that twin: the mean of the differences with its t interval, and the change in per cent of
the dense mean with Fieller's interval, which allows for the dense mean being measured too. With one seed there is no
interval, since the spread between seeds is then unknown.

Declared in advance: {DECLARED} in one study of each algorithm (that with most options at their defaults), tested for not
losing {100 * MARGIN:g} % or more, one-sided at 2.5 %, and the trend over rates (least-squares slope of each seed, dense
included; of the rates below {CONTROLS:g} that most seeds have in common: from there on they are positive controls, which show
that a loss can be seen). Everything else is exploratory. p-values are of paired t tests; Holm's correction counts the pruned
arms of a study, and its trends.

The smallest difference that would be seen is the one which a new study of as many seeds would find (two-sided at 5 %, no
correction) with 80 % power; it allows for the deviation being estimated from those few seeds. From 10 seeds of a game on, or
5 of each of several, the interquartile mean of the changes has a bootstrap interval over the seeds of each game, widened
for few seeds; with 3 of them it would cover 92 % instead of 95.

Recovery is of training games, exploration included. Level: mean of the last {{window}} games before the cut. Back: when the
mean of the last {{window}} games, all ended after the cut, is at the level again, which takes {{window}} games at the
least, for dense runs too; the median counts a run that never is as longer than all others. Area lost: between the level and
that moving mean, return times agent steps, from the cut until then or the end; in per cent of the level times the steps from
the cut to the end. In training from the cut to the end: the mean return of all games ended after the cut, against that of the
twin, not corrected for the number of arms. It is of all networks that a run passes through, with the fall at the cut and the
way back. The return at the end is of the last network alone, which may play far better or worse than the run that left it.

A dash is what was not measured, or what there is too little for: fewer than {{window}} games before or after the cut, one
seed, seeds that do not differ at all. Forked arms ran only from the cut on, dense runs from the start: their speeds are of
different parts of the training.
"""

CAPTIONS = {
    "return_against_rate": "Return at the end: mean and, of several seeds, 95 % t interval, a dot a seed; dotted: dense.",
    "change_against_rate": "Change against the dense twin of the seed, at the end: mean and, of several, 95 % interval, dots.",
    "moments": "Return before the cut, right after it and at the end: mean and, of several seeds, 95 % t interval, dots.",
    "training": "Training return, mean of the last {window} games, mean of the seeds; dotted: the cut.",
    "losses": "Losses: mean of the seeds, raw (faint) and averaged over {window} logged rows; dotted: the cut.",
    "sparsity": "Sparsity of each tensor after the cut.",
    "bytes": "Bytes on disk of the final network by format; a tick marks where a format starts to be smaller than dense.",
    "speed": "Speed by arm, on the machines named above: mean and, of several seeds, 95 % interval, dots. Forks from the cut.",
}


# ---------------------------------------------------------------------------------------------------------------- output
def draw(studies: list[Study], out: Path, window: int) -> None:
    styles = figures.shades(studies)
    with figures.plt.rc_context(figures.STYLE):
        scored = [s for s in studies if any(len(arm.scores("final")) for arm in s.arms)]
        if scored:
            figures.return_against_rate(scored, out)
            figures.moments(scored, styles, out)
            figures.change_against_rate(scored, out, MARGIN)
        for study in studies:
            training = {"charts/episodic_return": f"training return, mean of {window} games"}
            figures.curves(study, styles, training, out, f"training_{study.slug}", window, raw=False)
            figures.curves(study, styles, LOSSES[study.first.algorithm], out, f"losses_{study.slug}", window, raw=True)
        figures.sparsity(studies, styles, out)
        figures.disk(studies, out)
        figures.speed(studies, out)


def page(told: dict[str, list[str]], tables: dict[str, pd.DataFrame], out: Path, window: int) -> str:
    """One HTML file with everything in it."""
    parts = ["<h2>Conclusions</h2>"]
    for label, found in told.items():
        points = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in found)
        parts.append(f"<h3>{html.escape(label)}</h3><ul>{points}</ul>")
    if "named" in tables:
        shown = tables["named"].to_html(index=False, border=0)
        parts.append(f"<h2>Runs that are not used like the others</h2><div class=wide>{shown}</div>")
    parts.append("<h2>Figures</h2>")
    for kind, caption in CAPTIONS.items():
        for file in sorted([*out.glob(f"{kind}.png"), *out.glob(f"{kind}_*.png")]):
            data, text = base64.b64encode(file.read_bytes()).decode(), html.escape(caption.format(window=window))
            parts.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
            )
    parts.append("<h2>Tables</h2>")
    for name, table in tables.items():
        if name != "named":
            parts.append(f"<h3>{name.capitalize()}</h3><div class=wide>{table.to_html(index=False, border=0)}</div>")
    method = "".join(f"<p>{html.escape(part)}</p>" for part in METHOD.format(window=window).strip().split("\n\n"))
    style = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}img{max-width:100%}"
    style += "figure{margin:2em 0}"
    style += "figcaption{color:#444}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:12px}"
    style += "th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd}th{vertical-align:bottom}"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{OURS}<title>atari-prune report</title>'
    body = f"<h1>What one cut midway cost and gained</h1>{''.join(parts)}<h2>Method</h2>{method}"
    return f"{head}<style>{style}</style></head><body>{body}</body></html>\n"


def track(args: Args, tables: dict[str, pd.DataFrame]) -> None:
    import wandb

    told = {"runs": list(map(str, args.runs)), "window": args.window}
    where = {"project": args.wandb_project_name, "entity": args.wandb_entity, "dir": str(args.out)}
    run = init_wandb(name=args.out.resolve().name, job_type="report", config=told, **where)
    try:
        run.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in sorted(args.out.glob("*.png"))})
        run.log({f"tables/{name}": wandb.Table(dataframe=table.astype(str)) for name, table in tables.items()})
        run.log({"report": wandb.Html((args.out / "index.html").read_text(), inject=False)})
        run.finish()
    except Exception as error:  # whatever a strange answer makes the client say: the folder has everything
        print(f"W&B could not be finished ({type(error).__name__}: {error})", file=sys.stderr)


def make_room(out: Path) -> None:
    """Create the folder of the report, or empty that of an earlier one; UserError for a folder of something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        page_of_ours = out / "index.html"
        ours = page_of_ours.is_file() and OURS in page_of_ours.read_text(errors="replace")
        require(ours or not any(out.iterdir()), "out", "be new, empty or an earlier report", out)
        require(os.access(out, os.W_OK | os.X_OK), "out", "be a folder that can be written", out)
        for stale in [path for path in out.iterdir() if path.suffix in (".png", ".svg", ".md", ".csv", ".npz", ".html")]:
            stale.unlink()
        page_of_ours.write_text(OURS)  # should this report be interrupted, the next one may replace it
    except OSError as error:
        raise UserError(f"--out must be a folder that can be written, got {out}: {error.strerror}") from None


def report(args: Args) -> None:
    require(args.window >= 1, "window", "be at least 1", args.window)
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

    rows = {"returns": [], "trend": [], "recovery": [], "costs": []}
    told = {}
    for study in studies:
        returns, trends, recoveries = returns_table(study), trend_table(study), recovery_table(study)
        told[study.label] = sentences(study, returns, trends, recoveries)
        rows["returns"] += returns
        rows["trend"] += trends
        rows["recovery"] += recoveries
        rows["costs"] += costs_table(study)
    rows |= {"aggregate": aggregate_table(studies), "runs": runs_table(studies), "named": [n._asdict() for n in named]}
    for row in rows["aggregate"]:
        change, over = f"{row['iqm']:+.1%} (95 % bootstrap interval {span(row, 'iqm', '+.1%')})", f"{row['pairs']} pairs"
        told.setdefault(f"Interquartile means: {row['studies']}", []).append(f"{row['arm']}: {change}, over {over}.")
    make_room(args.out)
    tables = {}
    for name, found in rows.items():
        if found:
            pd.DataFrame(found).to_csv(args.out / f"{name}.csv", index=False, lineterminator="\n")
            tables[name] = view(name, found)
            (args.out / f"{name}.md").write_text(games.markdown(tables[name]))
    np.savez(args.out / "scores.npz", **rliable_scores(studies))
    lines = [line for label, found in told.items() for line in (f"## {label}", "", *(f"- {s}" for s in found), "")]
    lines += [f"- {what}: {name}: {reason}" for what, name, reason in named]
    (args.out / "conclusions.md").write_text("\n".join(lines) + "\n")
    draw(studies, args.out, args.window)
    (args.out / "index.html").write_text(page(told, tables, args.out, args.window))
    if args.track:
        track(args, tables)
    print("\n".join(lines))
    print(f"{sum(len(arm.runs) for s in studies for arm in s.arms)} runs; all of it is in {args.out / 'index.html'}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        report(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
