"""The page of a report: answers, sentences, figures, tables and method in one HTML file that needs nothing else."""

import base64
import html
from pathlib import Path

import pandas as pd

from analysis.conclusions import QUESTION, Answer, name_of
from analysis.design import BINS, CONTROLS, DECLARED, HELD, MARGIN, MIN_SEEDS, PLANNED
from analysis.studies import Study

TITLE = "What one cut in the middle of training cost"
METHOD = {
    "Pairs": """
A run is compared with the dense runs of its seed, its twins, only if they have the same past: the games before the cut and
every row of the curves before the cut, but those of health, must be equal. Options, script, precision, device type, threads,
torch and ale_py must agree too. Runs that fail are named with the first thing that differs. A run on another model of machine,
or with another Python, numpy or gymnasium, is compared and named.

Several continuations of one prune point (forks) are averaged within their seed, dense ones too. n counts seeds, never runs,
arms or games.

A plain cut is one cut of all tensors, each at the same rate. An arm of several cuts, of another scope, or with tensors left
whole is a variant. It is also compared with the plain cut of its criterion and rate, in the seeds where both have the past of
the same dense runs.
""",
    "Quantities, in this order": f"""
Return after the cut: the training games that ended after the cut, their mean return in each of {BINS} equal bins of agent
steps, and the mean of the bins. Late return: the last bin.

Final network: the evaluation games at the end. They are of one network, which may play far better or worse than the run that
left it.

Shock: the evaluation right after the cut against the one before it, which played other games. Dense has a shock too, which is
noise. An arm of several cuts is evaluated after its last one, so its shock includes what it learned since the first. Its return
after the cut is from the first cut on.
""",
    "The declared answer": f"""
Declared for each algorithm: {name_of(DECLARED)} loses less than {100 * MARGIN:g} % of the return after the cut, in runs with
the default options (the number of evaluation games is free). Yes means that the 95 % interval lies above -{100 * MARGIN:g} %,
which is a one-sided test at 2.5 % if it is made once. No means that the interval lies below.

Planned are {PLANNED["dqn"]} seeds of DQN and {PLANNED["ppo"]} of PPO. With fewer seeds, or fewer A/A runs in some of them, the
answer is preliminary, and says "so far": an interval that is read after each seed misses the truth in more than 5 % of studies.
With more seeds, the answer says how many.

There is no answer with fewer than {MIN_SEEDS} seeds, where the interval of the dense return reaches down to what no skill
scores, where a run has no return after the cut, or where no positive control (a plain cut at a rate of {CONTROLS:g} or more)
shows a loss. Without such a control, another arm must show one. Everything else is exploratory.

Until 2026-11-28 the declared quantity was the final network. For runs made before that day, return after the cut was chosen
later.
""",
    "Intervals": f"""
Means and differences have 95 % t intervals over seeds. Changes in per cent of dense, or of a plain cut, have Fieller's
interval, which allows for the error of that mean. One seed has no interval.

The exploratory comparisons of a study have simultaneous intervals (Bonferroni): in 95 % of studies all of them cover their
truth, and a loss or gain is called seen only by them. They are the exploratory arms and the trends. A trend is a least-squares
slope over the rates below {CONTROLS:g}, with dense as rate 0 and with the declared arm. Positive controls, and variants against
plain cuts, are such families too. The intervals of late return, final network, shock and single bins are not corrected: each is
one interval.

Changes are in points where a mean return is below 0 before or after the cut, as in Pong: 0 is no floor there.

Over several games, each seed has the interquartile mean over its games (of two or three games the plain mean), and seeds are
the sample: masks and initial weights of a seed are the same in every game. Each game's changes are in per cent of its dense
mean, taken as known.

`python -m checks.simulate_studies` measures how often these intervals cover the truth.
""",
    "Noise": f"""
The declared test is of arm - {1 - MARGIN:g} x dense, over seeds. How far this difference deviates between seeds is estimated in
three ways. The first is from the pairs of {name_of(DECLARED)} themselves, as the interval of its change is. The second fits an
effect per arm and one per seed to the means of arms by seeds, and takes what is left, in per cent of the arm's mean, pooled
over arms. The third is from equal continuations (A/A, forks). These may deviate less, since they cannot show that a cut affects
some seeds more than others.

From a deviation come the power of the test and the seeds that it needs. Where the first is far below the others, the seeds may
agree by luck, and the interval of the change may be too narrow.
""",
    "No skill": f"""
Uniform random play and every action held all the time (epsilon 0.01), whole games. An evaluation whose commonest action has a
share of {100 * HELD:g} % or more is called a held action. Distinct games differ in return or length.
""",
    "Baseline": """
Beside the dense runs of the declared study stand runs of CleanRL's own scripts with the options of the study, where they were
made (`python -m checks.cleanrl_returns`). Before 25 % is the mean return of the training games that ended in the 5 % of the
steps up to there. The seeds of the two programs are no pairs, so differences have Welch's intervals. An interval that contains
0 shows no equality, and the four intervals are not corrected for multiple comparisons.
""",
    "Recovery": """
Recovery is of training games, exploration included. Level: mean of the last {window} games before the cut. Back: when the
mean of the last {window} games, all ended after the cut, is at the level again, which takes at least {window} games. A run
that lacks these games, where the dense run of its seed has them, is never back. A seed has the mean of its runs. In the median,
a seed with a run that never comes back counts as longer than all others. Area lost: between the level and that moving mean,
from the cut until then or the end.
""",
    "Dashes and speeds": """
A dash is what was not measured, or what there is too little data for. Forked arms ran only from the cut on, dense runs from the
start, so their speeds are of different parts of the training.
""",
}
"""sections of the page: a heading, and paragraphs"""

HOLLOW = "Hollow: fewer seeds than dense, so compare such an arm with dense in the figures of changes."
CAPTIONS = {
    "difference": "Change of the training return against the dense twin, in tenths of the steps after the cut: mean and, of "
    "several seeds, 95 % interval per tenth. A/A: equal continuations.",
    "return_against_rate": "Return after the cut: mean and, of several seeds, 95 % interval, one dot per seed; dotted: dense. "
    + HOLLOW,
    "size": "Return after the cut against the parameters that are left, the bytes of the packed file and the speed after "
    "the cut: mean and, of several seeds, 95 % interval, dots. Arms of one size stand side by side. Drawn where units were "
    "removed or a small network was trained. " + HOLLOW,
    "change_against_rate": "Change against the dense twin in the three returns, and the arm's own shock: mean and, of several "
    "seeds, 95 % interval, one dot per seed, all in per cent of the dense mean. Arms of one rate stand side by side. Hollow: "
    "an arm with fewer seeds than dense.",
    "moments": "Evaluations before the cut, right after it (after the last of several) and at the end: mean and, of several "
    "seeds, 95 % t interval, dots. " + HOLLOW,
    "training": "Training return, mean of the last {window} games, mean of the arm's seeds; dotted: the cut. "
    "Arms may have fewer seeds than dense. Solid grey, beside the declared study: CleanRL's own script, where it was run.",
    "losses": "Losses: mean of the seeds, raw (faint) and averaged over {window} logged rows; dotted: the cut.",
    "sparsity": "Sparsity of each tensor after the cut.",
    "bytes": "Bytes on disk of the final network by format; a tick marks where a format starts to be smaller than dense.",
    "speed": "Speed by arm, on the machines named above: mean and, of several seeds, 95 % interval, dots. Forks from the cut.",
}
"""of the figures below the first screen, by the beginning of their names, in their order on the page"""
HEADLINE = "{label}: training return in tenths of the steps before and after the cut, and its change against dense. "
HEADLINE += "Returns: means over the declared arm's seeds, where there is one; A/A may have fewer. Changes: over all pairs. "
HEADLINE += "Band: 95 % interval, from two seeds on, cut off where it is wide. A/A: equal continuations."
CUT_OFF = "Where an interval is much longer than its figure, its ends are cut off. The tables have them."
INSIDE = """Measured on the first 250 steps of two games that each network plays itself, and of the next game where one ends
sooner; in a run of less than 2M agent steps on fewer in proportion. A change can come from the network or from what it gets to
see. Dormant: units whose mean activation is at most 2.5 % of that of their layer (Sokar et al. 2023); a unit that pruning
emptied is one. Effective rank: the fewest singular values of the last hidden features whose sum is at least 99 % of the sum of
all (Kumar et al. 2021); the number of observations bounds it, so compare runs of equal length. Right after the cut is, with
several cuts, after the last one. Curves: means of the seeds, every tenth of the training, in runs of 1M agent steps or more.
None of these numbers is a return."""
ELSEWHERE = ("changes", "variants", "named", "health", "bins")
"""tables that stand further up on the page, and bins, which are drawn"""
STYLE = """
body{font:16px/1.45 system-ui,sans-serif;color:#111;max-width:1120px;margin:1em auto;padding:0 1em}
h1{font-size:1.5em;margin:.3em 0}h2{margin-top:1.6em}img{max-width:100%;height:auto}
.answers,.headlines{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:.6em 1.2em}
.answers div{border-left:4px solid #0072B2;padding:.1em .8em}.answers p,.answers h2{margin:.15em 0;font-size:1em}
.answers strong{font-size:1.15em}.floor{margin:.7em 0;color:#333}
figure{margin:1.5em 0;overflow-x:auto}figure img{min-width:640px}
.headlines figure{margin:0}.headlines img{min-width:0;max-width:min(100%,600px)}figcaption{color:#444;font-size:.85em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:12px}li{margin:.3em 0}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd}th{vertical-align:bottom}td{white-space:nowrap}
.named td{white-space:normal;text-align:left;overflow-wrap:anywhere}.named td:first-child{white-space:nowrap}
"""


def figure(file: Path, caption: str) -> str:
    data, text = base64.b64encode(file.read_bytes()).decode(), html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def wide(table: pd.DataFrame, kind: str = "") -> str:
    return f"<div class='wide {kind}'>{table.to_html(index=False, border=0)}</div>"


def listed(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>"


def first_screen(answers: list[tuple[Study, Answer]], floors: list[str], figures: Path) -> str:
    """The answer of each study, what no skill scores, and one figure of each."""
    boxes = ""
    for study, answer in answers:
        told = f"<strong>{html.escape(answer.short)}</strong><p>{html.escape(answer.measured)}</p>"
        boxes += f"<div><h2>{html.escape(study.label)}</h2>{told}</div>"
    pictures = ""
    for study, _ in answers:
        if (file := figures / f"headline_{study.slug}.png").is_file():
            pictures += figure(file, HEADLINE.format(label=study.label))
    told = "".join(f"<p class=floor>{html.escape(sentence)}</p>" for sentence in floors)
    question = f"<p class=floor>Declared question: {html.escape(QUESTION)}</p>"
    return f"<h1>{TITLE}</h1>{question}<div class=answers>{boxes}</div>{told}<div class=headlines>{pictures}</div>"


def page(
    answers: list[tuple[Study, Answer]],
    floors: list[str],
    conclusions: dict[str, list[str]],
    left_out: list[str],
    tables: dict[str, pd.DataFrame],
    figures: Path,
    window: int,
) -> str:
    """The page of the answer and the sentences of each study, the tables by name and the figures in a folder."""
    parts = [first_screen(answers, floors, figures), "<h2>Conclusions</h2>"]
    parts += [f"<h3>{html.escape(label)}</h3>{listed(sentences)}" for label, sentences in conclusions.items()]
    if "changes" in tables:
        parts.append(f"<h3>Changes against dense</h3>{wide(tables['changes'])}")
    if "variants" in tables:
        parts.append(f"<h3>Variants against a plain cut</h3>{wide(tables['variants'])}")
    if "named" in tables:
        parts.append(f"<h2>Runs that are not used like the others</h2>{wide(tables['named'], 'named')}")
    parts.append(f"<h2>Figures</h2><p>{CUT_OFF}</p>")
    for kind, caption in CAPTIONS.items():
        files = sorted([*figures.glob(f"{kind}.png"), *figures.glob(f"{kind}_*.png")])
        parts += [figure(file, caption.format(window=window)) for file in files]
    if left_out:
        parts.append(f"<p>Left out:</p>{listed(left_out)}")
    if "health" in tables:
        parts.append(f"<h2>Inside the network</h2><p>{INSIDE}</p>{wide(tables['health'])}")
        parts += [figure(file, "Health over the training.") for file in sorted(figures.glob("health_*.png"))]
    parts.append("<h2>Tables</h2>")
    shown = {name: table for name, table in tables.items() if name not in ELSEWHERE}
    parts += [f"<h3>{name.replace('_', ' ').capitalize()}</h3>{wide(table)}" for name, table in shown.items()]
    method = ""
    for title, text in METHOD.items():
        paragraphs = html.escape(text.format(window=window)).strip().split("\n\n")
        method += f"<h3>{title}</h3>" + "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{head}<style>{STYLE.strip()}</style></head><body>{''.join(parts)}<h2>Method</h2>{method}</body></html>\n"
