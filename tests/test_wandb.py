"""--track with the real client: every row arrives, without a network, a key or an answer to a prompt."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ppo_atari_prune import wandb_records
from tests.conftest import SMALL, flags, rows, summary

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "offline": {"WANDB_MODE": "offline"},
    "no key": {},
    "no network": {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
}


def read_until_closed(leader: int) -> str:
    """What a terminal shows until its last writer has closed it, which Linux reports as an error."""
    seen = b""
    with contextlib.suppress(OSError):
        while data := os.read(leader, 4096):
            seen += data
    os.close(leader)
    return seen.decode()


@pytest.mark.parametrize("case", CASES)
def test_a_tracked_run_ends_with_every_row_in_its_offline_file(case, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)} | CASES[case]
    script = [sys.executable, str(ROOT / "ppo_atari_prune.py"), "--track", "--run-name=r", f"--runs-dir={tmp_path}"]
    script += flags(SMALL["ppo"])
    leader, terminal = pty.openpty()  # a person at a terminal: a client without a key would ask for one and wait
    process = subprocess.Popen(script, env=env, stdin=terminal, stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    seen = read_until_closed(leader)  # a terminal that nobody reads is full at some time, and who writes to it waits
    assert process.wait(timeout=150) == 0, seen
    assert ("W&B is out of reach" in seen) == (case != "offline")
    folder = tmp_path / "r"
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    records = wandb_records(folder)
    run, *failed = (r["run"] for r in records if r["type"] == "run")
    assert len(failed) == (case == "no network") and all(r["run_id"] == run["run_id"] for r in failed)  # its start in vain
    assert run["run_id"] == (folder / "wandb_id").read_text() and run["run_id"].startswith("r-") and len(run["run_id"]) == 8
    assert run["display_name"] == "r" and run["run_group"] == "SpaceInvadersNoFrameskip-v4__ppo__l1-0.3"
    config = run["config"]["update"]
    assert (config["arm"], config["effective_prune_rate"], config["seed"]) == ("l1-0.3", 0.3, 1)
    sent = [json.dumps(r) for r in records if r["type"] == "history"]
    curves = rows(folder / "curves.csv")
    assert len(curves) > 40
    for row in curves:
        assert any(row["tag"] in line and row["global_step"] in line for line in sent), row
    told = json.dumps([r for r in records if r["type"] == "summary"])
    assert "effective_prune_rate" in told and str(summary(folder)["pruned"]) in told
    assert [r for r in records if r["type"] in ("artifact", "request") and "model" in json.dumps(r)] or "artifact" in str(
        records
    )
