"""--track without a server: no row is ever missing from what W&B is given, and nothing there ends or stops a training."""

import contextlib
import gc
import math
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from prune_utils import log
from prune_utils.run import Run, wandb_group
from tests.conftest import SCRIPTS, SHORT, SMALL, flags, summary
from tests.wandb_server import KEY, in_curves, in_files, points, records, serving

ROOT = Path(__file__).resolve().parents[1]
MANY = SHORT["ppo"] | {"num_envs": 1, "num_steps": 2, "num_minibatches": 1, "hidden_size": 8, "total_timesteps": 320}
"""7 rows per 2 agent steps: more than 1,100 in a few seconds"""


# ---------------------------------------------------------------------------------------- in one process, with a fake client
class Killed(BaseException):
    """The process of a run was killed."""


class Client:
    """A W&B client that raises `error` once it was given so many rows: Killed is the end of its process."""

    def __init__(self, rows: float, error: type[BaseException]):
        self.history, self.rows, self.error = [], rows, error

    def define_metric(self, *_, **__):
        if self.rows == 0:
            raise self.error("the client\nis gone")

    def log(self, row: dict) -> None:
        self.history.append(row)
        if len(self.history) >= self.rows:
            raise self.error("the client\nis gone")


@pytest.fixture
def process(monkeypatch, tmp_path):
    """process(algorithm, track, iterations=None, rows=inf, error=Killed, **options): one process of the run `a`.

    It writes a checkpoint after each iteration and is killed in its iteration of that number, or sees an error once it gave
    W&B so many rows. Returns whether the run is finished and the points that it gave to W&B; process.ids are those of its runs.
    """

    def run(algorithm: str, track: bool, iterations: int | None = None, rows: float = math.inf, error=Killed, **options):
        client, done = Client(rows, error), 0

        def init(**options) -> Client:
            run.ids.append(options["id"])
            (Path(options["dir"]) / "wandb").mkdir(exist_ok=True)
            return client

        def save_or_die(run: Run, global_step: int) -> None:
            nonlocal done
            done += 1
            run.save(global_step)
            if done == iterations:
                raise Killed

        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        monkeypatch.setattr(log, "init_wandb", init)
        monkeypatch.setattr(log, "finish_wandb", lambda *_: None)
        monkeypatch.setattr(Run, "checkpoint_if_due", save_or_die)
        options = SHORT[algorithm] | {"track": track, "runs_dir": str(tmp_path), "run_name": "a"} | options
        try:
            SCRIPTS[algorithm].train(SCRIPTS[algorithm].Args(**options))
            finished = True
        except Killed:
            finished = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()  # the lock of the folder goes with the run
        return finished, points(client.history)

    run.ids = []
    return run


def test_a_resume_sends_every_row_before_its_checkpoint_again(process, tmp_path):
    # 7 rows per iteration: the fourth checkpoint is of 21 rows
    _, first = process("ppo", track=True, iterations=4)
    finished, second = process("ppo", track=True)
    curves = in_curves(tmp_path / "a")
    assert finished and len(first) == 21 and first == curves[:21] and second == curves


def test_tracking_that_is_switched_on_at_a_resume_sends_every_row_once_and_in_order(process, tmp_path):
    assert process("ppo", track=False, iterations=4) == (False, [])
    assert process("ppo", track=True) == (True, in_curves(tmp_path / "a"))


@pytest.mark.parametrize("rows", [0, 2])
def test_a_client_that_does_not_start_or_dies_never_ends_a_training_and_a_resume_sends_all_that_it_lost(
    rows, process, tmp_path, capsys
):
    finished, given = process("ppo", track=True, iterations=4, rows=rows, error=ConnectionError)
    assert not finished and given == in_curves(tmp_path / "a")[: len(given)] and bool(given) == bool(rows)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert told.startswith(
        "W&B failed (ConnectionError: the client is gone): the run continues without it; stop and resume it to"
    )
    assert process("ppo", track=True) == (True, in_curves(tmp_path / "a"))
    assert len(process.ids) == 2 and process.ids[0] == process.ids[1]


def test_a_run_of_an_agent_goes_on_in_its_wandb_run_by_hand_and_another_agent_gets_every_row(process, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "agent1")
    process("ppo", track=True, iterations=4)
    monkeypatch.delenv("WANDB_RUN_ID")
    _, by_hand = process("ppo", track=True, iterations=2)
    monkeypatch.setenv("WANDB_RUN_ID", "agent2")
    finished, anew = process("ppo", track=True)
    curves = in_curves(tmp_path / "a")
    assert process.ids == ["agent1", "agent1", "agent2"] and by_hand[:21] == curves[:21]
    assert finished and anew == curves


def test_a_fork_sends_the_rows_of_its_parent_first_and_every_row_once(process, small_run, tmp_path):
    parent = small_run("ppo", prune_type="none", **SHORT["ppo"])
    finished, given = process("ppo", track=True, prune_type="l1", fork_from=str(parent))
    before = in_curves(parent)[:35]  # of the 5 iterations before the cut
    assert finished and given == in_curves(tmp_path / "a") and given[:35] == before and given[35][1] == "prune/sparsity"


KILLED = {
    "with a stretch that is not tracked": [
        {"track": True, "iterations": 3},
        {"track": False, "iterations": 4},
        {"track": True, "rows": 3},
        {"track": True, "iterations": 2},
        {"track": True},
    ],
    "while a fork sends the rows of its parent": [
        {"track": True, "rows": 15},
        {"track": True, "iterations": 1},
        {"track": True, "rows": 15},
        {"track": True},
    ],
    "right after the cut of a DQN": [{"track": True, "iterations": 61}, {"track": True}],
}


@pytest.mark.parametrize("case", KILLED)
def test_wandb_has_every_row_and_no_other_of_a_run_killed(case, process, small_run, tmp_path):
    algorithm, options = "dqn" if "DQN" in case else "ppo", {"prune_type": "l1", "prune_rate": 0.5}
    if "fork" in case:
        options |= {"fork_from": str(small_run(algorithm, prune_type="none", **SHORT[algorithm]))}
    arrived = set()
    for moment in KILLED[case]:
        finished, given = process(algorithm, **moment, **options)
        arrived |= set(given if finished else given[:-12])  # the rest was not written when the client was killed
    assert finished and arrived == set(in_curves(tmp_path / "a")) and len(arrived) >= 20


def test_an_upload_that_fails_at_the_end_is_told_with_what_uploads_it_and_nothing_else_happens(monkeypatch, capsys):
    def fail(*_) -> None:
        raise RuntimeError("gone\naway")

    monkeypatch.setattr(log, "finish_wandb", fail)
    closed = []
    file = SimpleNamespace(close=lambda: closed.append(1))
    log.Log.close(SimpleNamespace(bar=file, file=file, tensorboard=file, wandb=SimpleNamespace(dir="r/wandb/run-1/files")), {})
    told = (
        "the upload to W&B did not finish (RuntimeError: gone away); wandb sync --no-skip-online r/wandb/run-1 uploads the run"
    )
    assert capsys.readouterr().err == f"{told}\n" and len(closed) == 3


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, "l1-0.3"),
        ({"seed": 2, "num_threads": 1, "precision": "fp32", "eval_episodes": 100}, "l1-0.3"),
        ({"prune_scope": "erk", "prune_head": False}, "l1-0.3__prune_scope-erk__prune_head-False"),
        ({"prune_cuts": 8, "prune_until": 0.7}, "l1-0.3-8cuts__prune_until-0.7"),
        ({"prune_until": 0.7, "prune_bias": False}, "l1-0.3__prune_bias-False"),
        ({"prune_type": "none", "prune_scope": "erk"}, "none"),
        ({"prune_type": "none", "width": 0.5, "prune_at": 0.2}, "none__prune_at-0.2__width-0.5"),
    ],
)
def test_runs_that_differ_by_more_than_their_seed_and_machine_are_groups_of_their_own(options, ending):
    assert wandb_group("ppo", SCRIPTS["ppo"].Args(**options)) == f"SpaceInvadersNoFrameskip-v4__ppo__{ending}"


def test_a_run_goes_to_the_project_and_the_entity_of_its_options(tmp_path, monkeypatch):
    given, run = {}, SimpleNamespace(define_metric=lambda *_, **__: None)
    monkeypatch.setattr(log, "init_wandb", lambda **options: given.update(options) or run)
    config = {"options": {"wandb_project_name": "p", "wandb_entity": "e"}, "resolved": {}, "device_name": ""}
    log.start_wandb(tmp_path, config, {"group": "g", "env_id": "", "algorithm": "", "prune_type": ""})
    assert (given["project"], given["entity"], given["group"]) == ("p", "e", "g")


def test_a_long_group_ends_in_a_hash_of_the_whole():
    many = {"prune_at": 0.25, "prune_bias": False, "prune_head": False, "total_timesteps": 40960, "learning_rate": 0.00011}
    first, second = (wandb_group("ppo", SCRIPTS["ppo"].Args(**many, gamma=gamma)) for gamma in (0.98, 0.97))
    assert len(first) == len(second) <= 128 and first[:100] == second[:100] and first != second


# ------------------------------------------------------------------------------------------------------ with the real client
def environment(home: Path, **more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(home)} | more


def command(folder: Path, options: dict, *more: str) -> list[str]:
    options = options | {"runs_dir": folder.parent, "run_name": folder.name}
    return [sys.executable, str(ROOT / "ppo_atari_prune.py"), *flags(options), *more]


@contextlib.contextmanager
def unreachable(case: str):
    """The environment of a W&B client that is told to stay offline, or can't do otherwise."""
    if case == "a server that never answers":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
    elif case == "a wrong key":
        with serving() as server:
            yield {"WANDB_API_KEY": "1" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
    else:
        yield {
            "offline": {"WANDB_MODE": "offline"},
            "no key": {},
            "a dead server": {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        }[case]


REASONS = {
    "offline": None,
    "no key": "no API key",
    "a wrong key": "401",
    "a dead server": "127.0.0.1:9: connect: connection refused",
    "a server that never answers": "deadline exceeded",
}


def read_until_closed(leader: int) -> str:
    """What a terminal shows until its last writer has closed it, which Linux reports as an error."""
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(leader, 4096):
            shown += data
    os.close(leader)
    return shown.decode()


@pytest.mark.parametrize("case", REASONS)
def test_a_tracked_run_ends_with_every_row_in_its_offline_file_and_one_line_says_why_it_is_offline(case, tmp_path):
    # the first has games, evaluations and a cut; for the others a run of a second is enough
    options = SMALL["ppo"] if case == "offline" else SHORT["ppo"]
    folder = tmp_path / "r"
    with unreachable(case) as variables:
        leader, terminal = pty.openpty()  # a person at a terminal: a client without a key would ask for one and wait
        process = subprocess.Popen(
            command(folder, options, "--track"),
            env=environment(tmp_path, **variables),
            stdin=terminal,
            stderr=terminal,
            stdout=subprocess.DEVNULL,
        )
        os.close(terminal)
        shown = read_until_closed(leader)  # a terminal that nobody reads is full at some time, and who writes to it waits
        assert process.wait(timeout=300) == 0, shown
    lines = [line for line in shown.splitlines() if "cannot reach W&B" in line]
    assert len(lines) == (case != "offline") and "Traceback" not in shown, shown
    for line in lines:
        assert REASONS[case] in line and line.endswith(f"offline; scripts/sync_wandb.sh {folder} uploads the run later"), line
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    found = records(folder)
    run, *failed = (record["run"] for record in found if record["type"] == "run")
    assert all(record["run_id"] == run["run_id"] for record in failed)  # of its start online, in vain
    assert run["run_id"] == (folder / "wandb_id").read_text() and run["run_id"].startswith("r-") and len(run["run_id"]) == 8
    assert run["display_name"] == "r" and run["run_group"].startswith("SpaceInvadersNoFrameskip-v4__ppo__l1-0.3__hidden_size")
    config = run["config"]["update"]
    assert (config["arm"], config["effective_prune_rate"], config["seed"]) == ("l1-0.3", 0.3, 1)
    assert sorted(in_files(folder)) == sorted(in_curves(folder)) and len(in_curves(folder)) > 40
    totals = {}
    for record in found:
        totals |= record.get("summary", {}).get("update", {})
    assert totals["effective_prune_rate"] == 0.3 and totals["pruned"] == summary(folder)["pruned"]
    assert f"model-{run['run_id']}" in [record["artifact"]["name"] for record in found if record["type"] == "artifact"]


def kill(process: subprocess.Popen) -> None:
    """Kill a run and its W&B client at once, as a machine that dies does: what the client has not written is lost."""
    process.send_signal(signal.SIGSTOP)
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait()


def last_step(folder: Path) -> int:
    """The agent step of the last whole line of curves.csv as it is on the disk."""
    lines = (folder / "curves.csv").read_text().splitlines() if (folder / "curves.csv").exists() else []
    return int(lines[-2].split(",")[0]) if len(lines) > 2 else 0


def test_every_row_is_in_the_files_of_a_run_that_is_killed_four_times_and_tracked_from_its_second_process_on(tmp_path):
    folder, rng = tmp_path / "r", random.Random(3)
    words, env = command(folder, MANY, "--checkpoint-minutes=0.002"), environment(tmp_path, WANDB_MODE="offline")
    for index, step in enumerate([100, 0, 180, 260]):  # the second is killed while it sends the rows of the first
        tracked = [*words, *["--track"] * (index > 0)]
        process = subprocess.Popen(tracked, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(folder.glob("wandb/offline-run-*/*.wandb"))) < index or last_step(folder) < step:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.2 * rng.random())
        kill(process)
    assert subprocess.run([*words, "--track"], env=env, capture_output=True, text=True).returncode == 0
    found, curves = in_files(folder), in_curves(folder)
    assert set(found) == set(curves) and len(found) > len(curves) > 1100
    assert len({record["run"]["run_id"] for record in records(folder) if record["type"] == "run"}) == 1


def test_a_fork_that_is_killed_as_it_starts_has_the_rows_of_its_parent_in_its_files(tmp_path, small_run):
    parent = small_run("ppo", prune_type="none", **MANY)
    folder = tmp_path / "fork"
    words = command(folder, MANY | {"prune_type": "l1", "prune_rate": 0.5, "fork_from": parent}, "--track")
    env = environment(tmp_path, WANDB_MODE="offline")
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.glob("wandb/offline-run-*/*.wandb")):
        assert process.poll() is None
        time.sleep(0.002)
    kill(process)
    assert subprocess.run(words, env=env, capture_output=True, text=True).returncode == 0
    found, half = in_files(folder), MANY["total_timesteps"] // 2
    assert set(found) == set(in_curves(folder))
    of_the_parent = {row for row in in_curves(parent) if row[0] <= half and not row[1].startswith("prune/")}
    assert of_the_parent <= set(found) and len(of_the_parent) > 500
