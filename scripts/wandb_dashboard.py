"""One saved view and one report for a W&B project, made or brought up to date.

    pip install -r requirements-dashboard.txt
    python scripts/wandb_dashboard.py --entity ME --project atari-prune

The view and the report of this title are found in the project, so a second call changes the same two. Changes made by hand in
the app are replaced: save a copy under another name there. Needs a key (`wandb login` or WANDB_API_KEY) and a project with runs
(--track). WANDB_BASE_URL names another server. Exit codes: 0 saved, 1 the server failed, 2 invalid options, key or project.
"""

import os
import shlex
import sys
from dataclasses import dataclass

import tyro

TITLE = "What one pruning step costs and gains"
ALGORITHMS = ("dqn", "ppo")
COLOURS = {"l1": (0xD5, 0x5E, 0x00), "random": (0x00, 0x72, 0xB2)}
COLOURS |= {"l1-structured": (0xE6, 0x9F, 0x00), "random-structured": (0x56, 0xB4, 0xE9)}
"""of the criteria, as in the figures of the analysis; the smaller the rate, the lighter"""
RATES = (0.05, 0.1, 0.3, 0.5, 0.8, 0.9)
FORMATS = ["dense", "coo", "csr_int64", "csr_int32", "bitmask", "bitmask_fp16_lossy", "zlib_of_dense", "zstd_of_dense"]
FORMATS += ["packed"]
LAYERS = {"dqn": ["conv1", "conv2", "conv3", "fc1", "fc2"], "ppo": ["conv1", "conv2", "conv3", "fc1", "actor", "critic"]}
COLUMNS = ["config:arm.value", "config:effective_prune_rate.value", "config:seed.value", "config:algorithm.value"]
COLUMNS += ["config:env_id.value", "summary:eval.final.mean", "summary:sparsity", "summary:disk.dense", "summary:disk.packed"]
"""of the table of runs"""
METHOD = """For each seed one dense run is trained. Every pruned arm starts from its checkpoint at the cut.
The cut is halfway through the training (--prune-at). Each tensor loses the same share of its entries, for good.
`l1` removes the smallest entries, `random` removes random ones, `none` removes nothing.
The structured arms remove whole channels and hidden units, which leaves a smaller network.
Agents play whole evaluation games before the cut, right after it and at the end. Returns are the game's own score.
A group has the runs of one game, algorithm, arm and other options: one per seed, so n counts seeds."""


class UserError(Exception):
    """What the user can correct."""


@dataclass
class Args:
    entity: str | None = None
    """the W&B team or user; None is the default one of the key"""
    project: str = "atari-prune"
    """the W&B project, as in --wandb-project-name of the runs"""
    games: tuple[str, ...] = ("SpaceInvadersNoFrameskip-v4",)
    """games that the report has panels of, as in GAMES of a sweep"""


# ------------------------------------------------------------------------------------------------------------- the panels
@dataclass
class Panel:
    """One picture. Runs are grouped by W&B's own group of a run: game, algorithm, arm and other options."""

    title: str
    metrics: list[str]
    reading: str
    """how to read it"""
    y: str = ""
    kind: str = "curve"
    algorithm: str | None = None
    """None: of both"""

    def draw(self):
        """The panel of the library. System metrics have no agent steps."""
        import wandb_workspaces.reports.v2 as wr

        look = {"title": self.title, "title_y": self.y, "max_runs_to_show": 1000, "groupby": "Group"}
        look |= {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
        if self.kind == "table":
            return wr.WeavePanelSummaryTable(table_name=self.metrics[0])
        if self.kind == "comparison":
            return wr.RunComparer(diff_only="split")
        if self.kind == "scatter":
            return wr.ScatterPlot(title=self.title, x=wr.Config(self.metrics[0]), y=wr.SummaryMetric(self.metrics[1]))
        if self.kind == "bars":
            return wr.BarPlot(**look, metrics=self.metrics, orientation="v", max_bars_to_show=1000)
        if self.kind == "clock":
            return wr.LinePlot(**look, y=self.metrics, x="RelativeTime(Process)", title_x="time")
        smooth = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": 0.9 if "return" in self.title else 0.5}
        return wr.LinePlot(**look, **smooth, y=self.metrics, x="global_step", title_x="agent steps")


def panels() -> dict[str, list[Panel]]:
    """The panels of each section."""
    moments = [f"eval/{moment}_return" for moment in ("before_prune", "after_prune", "final")]
    cost = [
        Panel(
            "Training return", ["charts/episodic_return"], "line: mean of the seeds, smoothed; band: standard error", "return"
        ),
        Panel("Return before the cut, right after it, at the end", moments, "means of the evaluation games", "return", "bars"),
        Panel(
            "Final return against rate",
            ["effective_prune_rate", "eval.final.mean"],
            "a dot per run or group; in the view, with default options, l1 is orange, random blue, dense grey",
            kind="scatter",
        ),
    ]
    gain = [
        Panel(
            "Bytes on disk",
            [f"disk/{name}_bytes" for name in FORMATS],
            "each storage format of the final network; a pruned network gains where it is below its dense bytes",
            "bytes",
            "bars",
        ),
        *(
            Panel(
                f"Sparsity by tensor, {algorithm.upper()}",
                [f"prune/sparsity_{layer}.weight" for layer in layers],
                "share of the weights that the cut removed",
                "share",
                "bars",
                algorithm,
            )
            for algorithm, layers in LAYERS.items()
        ),
        Panel(
            "Speed",
            ["time.agent_steps_per_second_while_learning"],
            "agent steps per second; masks skip no work, structured arms do less of it after the cut",
            "steps/s",
            "bars",
        ),
        Panel(
            "Parameters",
            ["parameters", "nonzero"],
            "all of the final network, and those that are not zero",
            "parameters",
            "bars",
        ),
        Panel(
            "Multiply-adds of a forward pass",
            ["multiply_adds.dense", "multiply_adds.nonzero"],
            "of all weights, and of those that are not zero",
            "multiply-adds",
            "bars",
        ),
    ]
    dormant = [f"health/dormant_{layer}" for layer in ("conv1", "conv2", "conv3", "fc1")]
    inside = [
        Panel("Dormant units by layer", dormant, "units that are hardly active; those that pruning emptied count too", "share"),
        Panel("Effective rank", ["health/effective_rank"], "how many directions the last features use", "directions"),
        Panel("Q values", ["health/q_mean", "health/q_std"], "mean and deviation over states and actions", algorithm="dqn"),
        Panel("Entropy of the policy", ["health/entropy"], "of the sampled policy in its own games", "nats", algorithm="ppo"),
        Panel("Norms", ["health/weight_norm", "health/feature_norm"], "of all weights, and of the last features", "L2 norm"),
    ]
    healthy = [
        Panel("TD loss", ["losses/td_loss"], "a jump at the cut should fade", algorithm="dqn"),
        Panel("Q values", ["losses/q_values"], "growth without end is divergence", algorithm="dqn"),
        Panel("Policy loss", ["losses/policy_loss"], "around 0", algorithm="ppo"),
        Panel("Value loss", ["losses/value_loss"], "a jump at the cut should fade", algorithm="ppo"),
        Panel("Entropy", ["losses/entropy"], "0 is a policy that has stopped exploring", algorithm="ppo"),
        Panel("Approximate KL", ["losses/approx_kl"], "how far an update moves the policy", algorithm="ppo"),
        Panel("Explained variance", ["losses/explained_variance"], "of the critic; 1 is perfect", algorithm="ppo"),
        Panel("GPU utilisation", ["system/gpu.0.gpu"], "share of the time in which the GPU computes", "%", "clock"),
        Panel("GPU memory", ["system/gpu.0.memoryAllocatedBytes"], "in use", "bytes", "clock"),
        Panel("Memory of the process", ["system/proc.memory.rssMB"], "a steady rise is a leak", "MB", "clock"),
    ]
    table = Panel("Evaluation games", ["evaluation_games"], "each game with its moment, seed, return and length", kind="table")
    compared = Panel("Runs side by side", [], "options and results in which the runs differ", kind="comparison")
    sections = {"What did the cut cost": cost, "What did it gain": gain, "Inside the network": inside}
    sections |= {"Is training healthy": healthy}
    return sections | {"Runs": [table, compared]}


# ------------------------------------------------------------------------------------------------- the view and the report
def colours(games: tuple[str, ...]) -> dict[str, str]:
    """A colour for each group of default options: dense grey, a criterion's own for its arms. W&B chooses the others."""
    arms = {"none": "#555555"}
    for criterion, colour in COLOURS.items():
        for position, rate in enumerate(RATES):
            white = 0.6 * (1 - position / (len(RATES) - 1))
            mixed = [round(255 * white + part * (1 - white)) for part in colour]
            arms[f"{criterion}-{rate:g}"] = "#{:02x}{:02x}{:02x}".format(*mixed)
    return {f"{game}__{algorithm}__{arm}": colour for game in games for algorithm in ALGORITHMS for arm, colour in arms.items()}


def make_view(entity: str, project: str, games: tuple[str, ...]):
    """The view, not saved yet."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=[panel.draw() for panel in shown], is_open=True) for name, shown in panels().items()
    ]
    runs = ws.RunsetSettings(
        filters="Metric('JobType') = 'train'",  # and not the reports of the analysis
        groupby=[ws.Metric("Group")],
        group_colors=colours(games),
        order=[ws.Ordering(ws.Metric("Group"), ascending=True)],
        pinned_columns=["run:displayName", *COLUMNS],
    )
    settings = ws.WorkspaceSettings(x_axis="global_step", max_runs=1000)
    return ws.Workspace(entity, project, name=TITLE, sections=sections, runset_settings=runs, settings=settings)


def make_report(entity: str, project: str, games: tuple[str, ...]):
    """The report, not saved yet: question, reading, method, and a grid of panels for each game and algorithm."""
    import wandb_workspaces.reports.v2 as wr

    asked = "An agent is pruned once, in the middle of its training. What is lost, what is gained? "
    blocks = [wr.P(asked + "Compare each pruned arm with the dense one (`none`) of the same seeds."), wr.TableOfContents()]
    blocks += [wr.H1("How to read the panels")]
    for section, shown in panels().items():
        blocks += [wr.H3(section), wr.UnorderedList([f"{panel.title}: {panel.reading}" for panel in shown])]
    for game in games:
        for algorithm in ALGORITHMS:
            runs = wr.Runset(
                entity=entity,
                project=project,
                name=f"{algorithm.upper()} on {game}",
                filters=f"Config('algorithm') = '{algorithm}' and Config('env_id') = '{game}'",
                groupby=["group"],
                pinned_columns=["run:displayName", *COLUMNS],
            )
            shown = [panel for section in panels().values() for panel in section if panel.algorithm in (None, algorithm)]
            blocks += [wr.H1(runs.name), wr.PanelGrid(runsets=[runs], panels=[panel.draw() for panel in shown])]
    blocks += [wr.H1("Method"), wr.UnorderedList(METHOD.splitlines()), wr.H1("This report")]
    command = shlex.join(["python", "scripts/wandb_dashboard.py", *sys.argv[1:]])
    blocks += [wr.P(["It is made, and updated, by ", wr.InlineCode(command)])]
    return wr.Report(project, entity, title=TITLE, blocks=blocks, width="fluid")


def find(path: str, kind: str):
    """The view or report of our title in a project, or None."""
    import wandb

    views = wandb.Api().reports(path)
    views.variables["viewType"] = kind  # without it these are the reports alone
    try:
        return next((view for view in views if view.display_name == TITLE), None)
    except ValueError:
        if (views.last_response or {}).get("project"):
            raise
        advice = "check --entity and --project, or log a run with --track first"
        raise UserError(f"no project {path} for this key: {advice}") from None


def save(args: Args) -> None:
    """Save view and report, each over the one that is there, and print their addresses."""
    import wandb

    api = wandb.Api()
    entity = args.entity or api.settings["entity"] or api.default_entity  # WANDB_ENTITY, as for runs, before the user's own
    path = f"{entity}/{args.project}"
    view, report = make_view(entity, args.project, args.games), make_report(entity, args.project, args.games)
    if found := find(path, "project-view"):
        view._internal_id, view._internal_name = found.id, found.name
    print(f"view {'updated' if found else 'created'}: {view.save().url}")
    if found := find(path, "runs"):
        report.id = found.id
    print(f"report {'updated' if found else 'created'}: {report.save().url}")


def exit_code(error: Exception) -> int:
    """2 for what the user can correct (a malformed or refused key, what is not there or not theirs), else 1."""
    import wandb

    cause = error.__cause__ or error  # the client says AuthenticationError of a dead server too
    answer = getattr(cause, "response", None)
    if answer is not None:
        return 2 if answer.http_status in (401, 403, 404) else 1
    return 2 if isinstance(cause, (UserError, wandb.errors.UsageError, wandb.errors.AuthenticationError)) else 1


def main() -> None:
    args = tyro.cli(Args, prog="wandb_dashboard.py", description=__doc__)
    os.environ.pop("WANDB_MODE", None)  # `offline` may be set for training; this has to reach the server
    os.environ["WANDB_SILENT"] = "true"  # the client's own messages would double the ones printed here
    os.environ.setdefault("WANDB_X_GRAPHQL_RETRY_MAX", "2")  # by default a dead server is tried for many minutes
    os.environ.setdefault("WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS", "2")
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        print(f"error: {error.name} is missing: pip install -r requirements-dashboard.txt", file=sys.stderr)
        sys.exit(2)
    try:
        if not wandb.login(prompt=False, verify=False):
            raise UserError("no API key: run `wandb login` or set WANDB_API_KEY")
        save(args)
    except Exception as error:  # of many kinds, on one line
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
