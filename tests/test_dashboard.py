"""The W&B dashboard and TensorBoard's: one view and one report, of what runs really log; one line for what is wrong."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from prune_utils.log import Log
from prune_utils.run import arm, wandb_group
from scripts import wandb_dashboard
from scripts.wandb_dashboard import TITLE, panels
from tests.conftest import SCRIPTS, rows, summary
from tests.wandb_server import KEY, PROJECT, records, serving

GAME = "SpaceInvadersNoFrameskip-v4"
ONLY_ON_A_GPU = {"system/gpu.0.gpu", "system/gpu.0.memoryAllocatedBytes"}


@pytest.fixture
def client(monkeypatch, tmp_path):
    """client(**environment): a new W&B client, in this process, with these variables alone."""

    def start(**environment: str) -> None:
        wandb.teardown()
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), **environment}.items():
            monkeypatch.setenv(name, value)

    yield start
    wandb.teardown()


@pytest.fixture
def dashboard(client, monkeypatch, capsys):
    """dashboard(*words, **environment): exit code, lines of output and of errors of the command, in this process."""

    def call(*words: str, **environment: str) -> tuple[int, list[str], list[str]]:
        retries = {"WANDB_X_GRAPHQL_RETRY_MAX": "1", "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "1"}
        client(WANDB_SILENT="", **retries, **environment)
        monkeypatch.setattr(sys, "argv", ["scripts/wandb_dashboard.py", *words])
        capsys.readouterr()  # what trainings before it said
        code = 0
        try:
            wandb_dashboard.main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def at(server, **more: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": KEY} | more


# ------------------------------------------------------------------------------------------------------------ what is sent
def dotted(value, name: str = "") -> set[str]:
    """The names of nested dictionaries and of their leaves, as W&B has them."""
    inner = value.items() if isinstance(value, dict) else []
    return {name}.union(*(dotted(each, f"{name}.{key}".removeprefix(".")) for key, each in inner))


def sent(folder: Path, trained: Path, algorithm: str) -> set[str]:
    """Names of what W&B is sent of a training, by the real log and client: history, summary, config, system metrics.

    The training itself was not tracked, and is not repeated: the log is given its rows, summary and games.
    """
    config, result = json.loads((trained / "config.json").read_text()), summary(trained)
    config["options"]["track"] = True
    saved = {"curves": (trained / "curves.csv").read_text(), "recent_returns": []}
    saved |= {"steps": 0, "seconds": 0.0, "wall_seconds": 0.0, "at_cut": (0, 0.0)}
    folder.mkdir()
    run_arm = arm(algorithm, config["options"]) | {"group": "a group"}
    log = Log(folder, config, run_arm, saved, result["global_step"], forked=False, check_folder=lambda: None)
    log.progress(result["global_step"], {}, learning=True)  # the clock
    log.close(result, rows(trained / "eval.csv"))
    names = set()
    for record in records(folder):
        kind = record["type"]
        values = {
            "run": lambda r: r["config"]["update"],
            "history": lambda r: r["item"],
            "summary": lambda r: r.get("update", {}),
            "stats": lambda r: {f"system/{name}": value for name, value in r["item"].items()},
        }.get(kind, lambda r: {})(record.get(kind))
        names |= dotted(values)
    return names | {name.partition(".")[0] for name in names}  # a table is there by its parts


def metrics(panel) -> set[str]:
    """What a panel of the library shows."""
    if isinstance(panel, wr.WeavePanelSummaryTable):
        return {panel.table_name}
    if isinstance(panel, wr.ScatterPlot):
        return {panel.x.name, panel.y.name}
    return {metric.name for metric in getattr(panel, "y", []) or getattr(panel, "metrics", [])}


def unknown(shown: list, names: set[str]) -> set[str]:
    """The metrics of panels that are not among these names."""
    return set().union(*map(metrics, shown)) - names - ONLY_ON_A_GPU


@pytest.mark.parametrize("options", [{}, {"prune_type": "none"}, {"prune_type": "random", "prune_rate": 0.5}])
def test_groups_of_default_options_have_colours(options):
    for algorithm, script in SCRIPTS.items():
        assert wandb_group(algorithm, script.Args(**options)) in wandb_dashboard.colours((GAME,))


def test_the_saved_view_and_report_show_what_a_run_of_each_algorithm_logs_and_nothing_else(
    client, dashboard, small_run, tmp_path
):
    trained = {algorithm: small_run(algorithm, prune_type="l1", prune_rate=0.5) for algorithm in SCRIPTS}
    client(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_X_STATS_SAMPLING_INTERVAL="0.1")
    names = {algorithm: sent(tmp_path / algorithm, folder, algorithm) for algorithm, folder in trained.items()}
    with serving() as server:
        code, out, _ = dashboard("--entity", "ent", **at(server))
        view, report = ws.Workspace.from_url(out[0].split()[-1]), wr.Report.from_url(out[1].split()[-1])
    assert code == 0

    shown = [panel for section in view.sections for panel in section.panels]
    made = [panel for section in panels().values() for panel in section]
    assert [section.name for section in view.sections] == list(panels()) and len(shown) == len(made) >= 20
    assert [set(panel.metrics) for panel in made] == list(map(metrics, shown))
    assert unknown(shown, names["dqn"] | names["ppo"]) == set()
    assert unknown([wr.BarPlot(metrics=[wr.Metric("losses/nobody")])], names["dqn"]) == {"losses/nobody"}
    columns = {column.partition(":")[2].removesuffix(".value") for column in view.runset_settings.pinned_columns}
    assert columns - {"displayName"} <= names["dqn"] & names["ppo"]
    assert view.runset_settings.groupby[0].name == "Group" and view.settings.x_axis == "global_step"

    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    for grid, algorithm in zip(grids, SCRIPTS, strict=True):
        assert unknown(grid.panels, names[algorithm]) == set() and len(grid.panels) >= 14
        assert grid.runsets[0].filters == f"Config(\"algorithm\") == '{algorithm}' and Config(\"env_id\") == '{GAME}'"
        assert grid.runsets[0].groupby == ["run.Group"]
    for panel in [*shown, *(panel for grid in grids for panel in grid.panels)]:
        if isinstance(panel, (wr.LinePlot, wr.BarPlot)):
            assert (panel.groupby, panel.groupby_aggfunc, panel.groupby_rangefunc) == ("Group", "mean", "stderr")
        if isinstance(panel, wr.LinePlot) and not metrics(panel) & {"system/proc.memory.rssMB", *ONLY_ON_A_GPU}:
            assert (panel.x.name, panel.title_x) == ("global_step", "agent steps")


def test_the_gpu_metrics_have_the_names_that_the_client_gives_them():
    monitor = (Path(wandb.__file__).parent / "bin" / "wandb-symon").read_bytes()
    assert all(name.rpartition(".")[2].encode() in monitor for name in ONLY_ON_A_GPU)


def test_the_custom_scalars_of_tensorboard_have_a_chart_for_nothing_that_is_not_logged(small_run):
    logged, patterns = set(), set()
    for algorithm in SCRIPTS:
        events = EventAccumulator(str(small_run(algorithm, prune_type="l1", prune_rate=0.5))).Reload()
        layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
        assert [category.title for category in layout.category] == list(panels())[:4]
        patterns |= {pattern for category in layout.category for chart in category.chart for pattern in chart.multiline.tag}
        logged |= set(events.Tags()["scalars"])
    found = {pattern: [tag for tag in logged if re.match(pattern, tag)] for pattern in patterns}
    assert all(found.values()) and found["charts/episodic_return"] == ["charts/episodic_return"]
    assert len(found["prune/sparsity.*"]) == 15 and len(found["disk/(dense|packed)_bytes"]) == 2


# ------------------------------------------------------------------------------------------------------------ one of each
def test_a_second_call_updates_the_same_two_and_one_after_a_deletion_makes_them_again(dashboard):
    with serving() as server:
        words = ("--games", "BreakoutNoFrameskip-v4", GAME)
        code, first, _ = dashboard("--entity", "ent", **at(server))
        assert code == 0 and [line.rpartition(":")[0][:15] for line in first] == ["view created: h", "report created:"]
        server.views["other"] = {"id": "other", "name": "nw-x-v", "displayName": "mine", "type": "project-view", "spec": "{}"}
        code, second, _ = dashboard(*words, **at(server, WANDB_MODE="offline"))  # the entity is that of the key
        assert code == 0 and second == [line.replace("created", "updated") for line in first]
        assert sorted(view["displayName"] for view in server.views.values()) == sorted([TITLE, TITLE, "mine"])
        report = next(view for view in server.views.values() if view["type"] == "runs")
        assert (
            "BreakoutNoFrameskip-v4" in report["spec"]
            and "python scripts/wandb_dashboard.py --games Breakout" in report["spec"]
        )
        server.views.clear()
        code, third, _ = dashboard(**at(server))
        assert code == 0 and all("created" in line for line in third)
        assert sorted(view["type"] for view in server.views.values()) == ["project-view", "runs"]


WRONG = {
    "no key": ({"WANDB_API_KEY": ""}, 2, "error: no API key: run `wandb login` or set WANDB_API_KEY"),
    "a malformed key": ({"WANDB_API_KEY": "abc"}, 2, "error: WANDB_API_KEY invalid: API key must have 40+ characters, has 3."),
    "a key that the server refuses": ({"WANDB_API_KEY": "1" * 40}, 2, "permission denied"),
    "a wrong entity": ({"--entity": "other"}, 2, f"error: no project other/{PROJECT} for this key: check --entity and"),
    "a wrong entity of runs": ({"WANDB_ENTITY": "other"}, 2, f"error: no project other/{PROJECT} for this key: check --entity"),
    "a project without a run": ({"--project": "new"}, 2, "error: no project ent/new for this key: check --entity and"),
    "a dead server": ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, 1, "127.0.0.1:9: connect: connection refused"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_with_an_exit_code_and_nothing_is_saved(case, dashboard):
    changed, expected, message = WRONG[case]
    with serving() as server:
        words = [word for name, value in changed.items() if name.startswith("--") for word in (name, value)]
        environment = {name: value for name, value in (at(server) | changed).items() if value and not name.startswith("--")}
        code, out, errors = dashboard(*words, **environment)
        assert (code, out, len(errors)) == (expected, [], 1) and message in errors[0] and not server.views


def test_without_the_library_one_line_names_the_file_that_installs_it(dashboard, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    line = "error: wandb_workspaces is missing: pip install -r requirements-dashboard.txt"
    assert dashboard() == (2, [], [line])
