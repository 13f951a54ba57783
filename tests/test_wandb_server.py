"""--track against a server on loopback: rows arrive whole, in order and once, and no trouble with it stops a training."""

import fcntl
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from scripts.kill_runs import bits, disturb
from tests.conftest import SMALL, flags, rows, summary
from tests.wandb_server import serving

ROOT = Path(__file__).resolve().parents[1]
SYNC = ROOT / "scripts" / "sync_wandb.sh"


def words(folder: Path, *more: str) -> list[str]:
    options = SMALL["ppo"] | {"prune_rate": 0.5, "runs_dir": folder.parent, "run_name": folder.name}
    return [sys.executable, str(ROOT / "ppo_atari_prune.py"), "--track", *flags(options), *more]


def environment(home: Path, server, **more: str) -> dict:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(home)}
    return kept | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"} | more


def sync(folder: Path, env: dict) -> subprocess.CompletedProcess:
    command = ["bash", str(SYNC), str(folder)]
    return subprocess.run(command, env=env | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=120)


def told(server) -> tuple[dict, list[tuple[int, str, float]]]:
    """The one run that the server knows, and its rows in the order in which they came, clocks and media aside."""
    (run,) = server.runs.values()
    history = [json.loads(line) for line in run["files"]["wandb-history.jsonl"]]
    return run, [
        (row["global_step"], tag, v) for row in history for tag, v in row.items() if "/" in tag and tag != "charts/SPS"
    ]


def curves(folder: Path) -> list[tuple[int, str, float]]:
    return [(int(row["global_step"]), row["tag"], float(row["value"])) for row in rows(folder / "curves.csv")]


def in_order(sent: list[tuple[int, str, float]]) -> bool:
    return [step for step, *_ in sent] == sorted(step for step, *_ in sent)


def test_an_online_run_sends_every_row_once_and_in_order_with_its_group_summary_and_games(tmp_path):
    with serving() as server:
        done = subprocess.run(words(tmp_path / "r"), env=environment(tmp_path, server), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        run, sent = told(server)
    assert sorted(sent) == sorted(curves(tmp_path / "r")) and in_order(sent) and len(sent) > 40
    assert (run["displayName"], run["groupName"]) == ("r", "SpaceInvadersNoFrameskip-v4__ppo__l1-0.5")
    shown = json.loads(run["files"]["wandb-summary.json"][-1])
    assert shown["sparsity"] == summary(tmp_path / "r")["sparsity"] and shown["disk"] == summary(tmp_path / "r")["disk"]
    assert shown["evaluation_games"]["_type"] == "table-file" and shown["evaluation_games"]["nrows"] == 3


def test_a_run_killed_and_resumed_offline_is_synced_whole_though_its_files_are_torn(tmp_path, monkeypatch):
    folder = tmp_path / "r"
    with serving() as server:
        env = environment(tmp_path, server)
        monkeypatch.setenv("WANDB_MODE", "offline")
        disturb(words(folder, "--checkpoint-minutes=0.003"), folder, 2, patience=1.0, rng=random.Random(2))
        first = sorted(folder.glob("wandb/offline-run-*/*.wandb"))[0]
        with open(first, "ab") as file:
            file.write(first.read_bytes()[7:60])  # the beginning of a record
        done = sync(folder, env)
        assert done.returncode == 0 and "mended" in done.stdout, done.stdout + done.stderr
        sent = told(server)[1]
        assert sorted(sent) == sorted(curves(folder)) and in_order(sent)
        assert sync(folder, env).stdout == ""  # nothing is sent again
        assert told(server)[1] == sent


def test_a_run_that_still_writes_is_left_alone_and_named_one_without_a_file_passed_over_and_no_folder_refused(tmp_path):
    running, empty = tmp_path / "running", tmp_path / "empty"
    for folder in (running, empty):
        (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    (running / "wandb" / "offline-run-1" / "run-1.wandb").write_bytes(b"half a header and a torn record")
    with open(running / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["bash", str(SYNC), str(running), str(empty)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"still running: {running}\n")
    assert len(list(running.glob("wandb/*/*"))) == 1  # not mended either
    refused = subprocess.run(["bash", str(SYNC), str(tmp_path / "typo")], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr == f"error: no such run folder: {tmp_path / 'typo'}\n"


def test_a_sync_without_a_server_names_the_runs_that_failed_and_exits_1(tmp_path):
    with serving() as server:
        env = environment(tmp_path, server)
    offline = env | {"WANDB_MODE": "offline"}
    assert subprocess.run(words(tmp_path / "r", "--eval-episodes=0"), env=offline, capture_output=True).returncode == 0
    done = sync(tmp_path / "r", env)
    assert done.returncode == 1 and f"error: not synced: {tmp_path / 'r'}/wandb/offline-run-" in done.stderr


def test_a_server_that_goes_away_in_the_middle_neither_stops_nor_changes_a_run(tmp_path, small_run):
    with serving() as server:
        env = environment(tmp_path, server)
        process = subprocess.Popen(words(tmp_path / "r"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any("wandb-history.jsonl" in run["files"] for run in server.runs.values()):
            assert process.poll() is None
            time.sleep(0.05)
    assert process.wait(timeout=150) == 0  # 60 s at most are waited at the end
    assert bits(tmp_path / "r") == bits(small_run("ppo", prune_type="l1", prune_rate=0.5))
