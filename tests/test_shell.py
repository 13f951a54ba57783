"""The shell files parse, print what they promise, and the table says what the runs say."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from tests.conftest import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shell_file_parses_can_be_executed_and_stops_at_a_failure(file):
    assert subprocess.run(["bash", "-n", file]).returncode == 0 and os.access(file, os.X_OK)
    assert "set -euo pipefail" in file.read_text() and 'cd "$(dirname "$0")/.."' in file.read_text()


def test_quickstart_prints_one_command_an_algorithm_that_its_script_accepts():
    call = ["bash", ROOT / "scripts" / "quickstart.sh"]
    done = subprocess.run(call, env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True, check=True, cwd="/")
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[:2] for words in commands] == [["python", "ppo_atari_prune.py"], ["python", "dqn_atari_prune.py"]]
    for words in commands:
        args = tyro.cli(SCRIPTS[words[1][:3]].Args, args=words[2:])
        assert (args.prune_type, args.prune_rate, args.run_name) == ("l1", 0.5, f"quickstart-{words[1][:3]}")


def table(*folders):
    return subprocess.run([sys.executable, ROOT / "scripts" / "table.py", *folders], capture_output=True, text=True)


def test_the_table_says_what_the_summary_says_and_names_what_is_unfinished(tmp_path):
    score = {"n": 10, "mean": 123.5, "std": 50.0, "ci95": [87.7, 159.3]}
    summary = {
        "algorithm": "ppo",
        "env_id": "Game-v4",
        "arm": "l1-0.5",
        "seed": 3,
        "global_step": 40960,
        "eval": {"final": score},
    }
    summary |= {"total": 1000, "nonzero": 480, "sparsity": 0.5, "disk": {"dense": 4000, "coo": 10000}}
    summary |= {"time": {"agent_steps_per_second_while_learning": 512.4}}
    for name in ("done", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "done" / "summary.json").write_text(json.dumps(summary))
    shown = table(tmp_path / "done", tmp_path / "half")
    assert shown.returncode == 0 and f"unfinished: {tmp_path / 'half'} has no summary.json" in shown.stderr
    for text in ("ppo l1-0.5, seed 3", "123.5 [88, 159]", "520 of 1,000", "10,000 (2.50x)", "512", "40,960"):
        assert text in shown.stdout


def test_the_table_of_no_finished_run_is_an_error(tmp_path):
    for folders in ([], [tmp_path]):
        shown = table(*folders)
        assert shown.returncode == 2 and shown.stdout == "" and "error: n" in shown.stderr and "Traceback" not in shown.stderr
