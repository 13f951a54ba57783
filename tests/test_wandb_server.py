"""--track against a server on loopback: every row arrives, whatever is killed, and no trouble with it stops a training."""

import fcntl
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

from checks.kill_runs import bits, disturb
from tests.conftest import SHORT, SMALL, summary
from tests.test_wandb import MANY, ROOT, command, environment, kill, last_step
from tests.wandb_server import KEY, in_curves, in_files, on_server, serving

SYNC = ROOT / "scripts" / "sync_wandb.sh"


def online(home: Path, server) -> dict[str, str]:
    return environment(home, WANDB_API_KEY=KEY, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")


def sync(folder: Path, env: dict) -> subprocess.CompletedProcess:
    words = ["bash", str(SYNC), str(folder)]
    return subprocess.run(words, env=env | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=300)


def in_order(points: list[tuple[int, str, float]]) -> bool:
    return [step for step, *_ in points] == sorted(step for step, *_ in points)


def test_an_online_run_sends_every_row_once_and_in_order_with_its_group_summary_and_games(tmp_path):
    folder = tmp_path / "r"
    with serving() as server:
        done = subprocess.run(
            command(folder, SMALL["ppo"] | {"prune_rate": 0.5}, "--track"),
            env=online(tmp_path, server),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        points, (run,) = on_server(server), server.runs.values()
    assert sorted(points) == sorted(in_curves(folder)) and in_order(points) and len(points) > 40
    group = "SpaceInvadersNoFrameskip-v4__ppo__l1-0.5__hidden_size-64__width-0.25"
    group += "__total_timesteps-1024__num_envs-2__update_epochs-2"
    assert (run["displayName"], run["groupName"]) == ("r", group)
    shown = json.loads(run["files"]["wandb-summary.json"][-1])
    assert shown["sparsity"] == summary(folder)["sparsity"] and shown["disk"] == summary(folder)["disk"]
    assert shown["evaluation_games"]["_type"] == "table-file" and shown["evaluation_games"]["nrows"] == 3


def test_a_run_killed_and_resumed_offline_is_synced_whole_though_its_files_are_torn(tmp_path, monkeypatch):
    folder = tmp_path / "my error runs" / "failure-1"  # words that tell of trouble in what `wandb sync` prints
    folder.parent.mkdir()
    with serving() as server:
        env = online(tmp_path, server)
        monkeypatch.setenv("WANDB_MODE", "offline")
        words = command(folder, SMALL["ppo"], "--track", "--checkpoint-minutes=0.003")
        disturb(words, folder, 2, patience=1.0, rng=random.Random(2))
        first = sorted(folder.glob("wandb/offline-run-*/*.wandb"))[0]
        with open(first, "ab") as file:
            file.write(first.read_bytes()[7:60])  # the beginning of a record
        offline = in_files(folder)
        done = sync(folder, env)
        assert done.returncode == 0 and "mended" in done.stdout, done.stdout + done.stderr
        points = on_server(server)
        assert set(points) == set(in_curves(folder)) and sorted(points) == sorted(offline)
        assert sync(folder, env).stdout == ""  # nothing is sent again
        assert on_server(server) == points


def test_a_run_killed_and_resumed_online_leaves_every_row_and_no_other_on_the_server(tmp_path):
    folder, quiet = tmp_path / "r", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = command(folder, MANY, "--track", "--checkpoint-minutes=0.002")
    with serving() as server:
        for step in (100, 220):
            process = subprocess.Popen(words, env=online(tmp_path, server), **quiet)
            while last_step(folder) < step:
                assert process.poll() is None
                time.sleep(0.01)
            kill(process)
        assert subprocess.run(words, env=online(tmp_path, server), **quiet).returncode == 0
        assert set(on_server(server)) == set(in_curves(folder)) and len(server.runs) == 1


def test_a_folder_of_runs_stands_for_its_runs_one_that_still_writes_is_left_alone_and_named_and_no_folder_refused(tmp_path):
    runs = tmp_path / "runs"
    running, empty = runs / "pong" / "running", runs / "empty"
    for folder in (running, empty):
        (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    python = os.environ | {"PYTHON": sys.executable}
    (running / "wandb" / "offline-run-1" / "run-1.wandb").write_bytes(b"half a header and a torn record")
    with open(running / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (runs / "empty.log").touch()  # a sweep leaves one beside each run
        (tmp_path / "link").symlink_to(runs), (tmp_path / "links").mkdir()
        (tmp_path / "links" / "pong").symlink_to(running.parent)
        for given in ([runs], [running, empty, runs / "empty.log"], [running, runs], [tmp_path / "link"], [tmp_path / "links"]):
            done = subprocess.run(["bash", SYNC, *given], env=python, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, "")
            assert re.sub("/links?/", "/runs/", done.stderr) == f"still running: {running}\n"
    assert len(list(running.glob("wandb/*/*"))) == 1  # not mended either
    (tmp_path / "other").mkdir()
    nothing = subprocess.run(["bash", SYNC, tmp_path / "other"], env=python, capture_output=True, text=True)
    assert (nothing.returncode, nothing.stdout) == (0, f"no offline W&B runs in: {tmp_path / 'other'}\n")
    refused = subprocess.run(["bash", SYNC, tmp_path / "typo"], env=python, capture_output=True, text=True)
    without = subprocess.run(["bash", SYNC, runs], env=os.environ | {"PYTHON": "nopython"}, capture_output=True, text=True)
    assert (without.returncode, without.stderr) == (2, "error: PYTHON must be a Python with requirements.txt, got nopython\n")
    assert refused.returncode == 2 and refused.stderr == f"error: no such folder: {tmp_path / 'typo'}\n"


def test_a_sync_without_a_server_or_with_one_that_takes_no_rows_names_what_failed_exits_1_and_tries_again(tmp_path):
    folder, told = tmp_path / "r", f"error: not synced: {tmp_path / 'r'}/wandb/offline-run-"
    with serving() as server:
        env = online(tmp_path, server)
    words = command(folder, SHORT["ppo"], "--track")
    assert subprocess.run(words, env=env | {"WANDB_MODE": "offline"}, capture_output=True).returncode == 0
    done = sync(folder, env)
    assert done.returncode == 1 and told in done.stderr
    with serving(refuses=True) as server:
        for _ in range(2):
            done = sync(folder, online(tmp_path, server) | {"WANDB_SILENT": "true", "WANDB_SHOW_ERRORS": "false"})
            assert done.returncode == 1 and told in done.stderr
    with serving() as server:
        assert sync(folder, online(tmp_path, server)).returncode == 0
        assert sorted(on_server(server)) == sorted(in_curves(folder))


def test_a_server_that_goes_away_neither_stops_nor_changes_a_run_and_its_rows_can_be_sent_later(tmp_path, small_run):
    folder, options = tmp_path / "r", SMALL["ppo"] | {"prune_type": "l1", "prune_rate": 0.5}
    with serving() as server, open(tmp_path / "output", "w") as output:
        words = command(folder, options, "--track")
        process = subprocess.Popen(words, env=online(tmp_path, server), stdout=output, stderr=output)
        while not any("wandb-history.jsonl" in run["files"] for run in server.runs.values()):
            assert process.poll() is None
            time.sleep(0.05)
    assert process.wait(timeout=300) == 0  # 60 s at most are waited at the end
    shown = (tmp_path / "output").read_text()
    assert "Traceback" not in shown, shown  # the client itself says that it has no server
    assert bits(folder) == bits(small_run("ppo", prune_type="l1", prune_rate=0.5))
    (run,) = folder.glob("wandb/run-*")
    with serving() as server:
        words = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", str(run)]
        assert subprocess.run(words, env=online(tmp_path, server), capture_output=True, timeout=300).returncode == 0
        assert sorted(on_server(server)) == sorted(in_curves(folder))
