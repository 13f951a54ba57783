"""The shell files, the table that quickstart prints, and what quickstart does when a training fails."""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from scripts import table
from tests.conftest import SCRIPTS

ROOT = Path(__file__).resolve().parent.parent
SHELL_FILES = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("tests/*.sh"), ROOT / ".ci" / "run"])


def bash(*words, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_the_shell_files_of_the_design_are_there():
    assert {"quickstart.sh", "test.sh", "run"} <= {path.name for path in SHELL_FILES}


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_a_shell_file_parses_can_be_executed_and_stops_at_a_failure(path):
    assert bash("-n", str(path)).stderr == ""
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


# ------------------------------------------------------------------------------------------------------------- quickstart
def test_quickstart_prints_two_training_commands_that_parse_and_cut_half_of_each_network_after_it_has_learned(tmp_path):
    printed = bash(str(ROOT / "scripts" / "quickstart.sh"), "--seed", "7", cwd=tmp_path, DRY_RUN="1")
    assert printed.returncode == 0 and list(tmp_path.iterdir()) == []
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert [words[1] for words in commands] == ["ppo_atari_prune.py", "dqn_atari_prune.py"]
    for algorithm, words in zip(("ppo", "dqn"), commands, strict=True):
        args = tyro.cli(SCRIPTS[algorithm].Args, args=words[2:])
        assert args.run_name == f"quickstart_{algorithm}" and args.runs_dir == "runs"
        assert (args.env_id, args.prune_type, args.prune_rate) == ("SpaceInvadersNoFrameskip-v4", "l1", 0.5)
        assert (args.prune_at, args.eval_episodes, args.num_threads, args.seed) == (0.5, 10, 1, 7)
        if algorithm == "dqn":  # at least 1,000 gradient updates before the cut, and exploration is over by then
            assert args.total_timesteps / 2 - args.learning_starts >= 1000 * args.train_frequency
            assert args.exploration_fraction < args.prune_at
        else:  # at least 10 rollouts before the cut
            assert args.total_timesteps / 2 >= 10 * args.steps_per_iteration


STUB = """#!/usr/bin/env bash
echo "$*" >> calls
case "$*" in {fails}*) exit 3 ;; esac
"""


def quickstart_with_a_stub(root: Path, fails: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run a copy of quickstart.sh from elsewhere with a stand-in for python that fails on one call; also the calls."""
    (root / "scripts").mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "quickstart.sh", root / "scripts")
    for name in ("python", "pip"):
        (root / ".venv" / "bin" / name).write_text(STUB.format(fails=fails))
        (root / ".venv" / "bin" / name).chmod(0o755)
    (root / "elsewhere").mkdir()
    done = bash(str(root / "scripts" / "quickstart.sh"), cwd=root / "elsewhere")
    return done, (root / "calls").read_text().splitlines()


def test_quickstart_installs_trains_both_prints_the_table_of_both_and_lets_a_trained_agent_play(tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, "nothing")
    assert done.returncode == 0, done.stderr
    assert "-m pip install" in calls[0] and calls[0].endswith("-r requirements.txt")
    assert sorted(call.split()[0] for call in calls[1:3]) == ["dqn_atari_prune.py", "ppo_atari_prune.py"]
    assert calls[3] == "scripts/table.py runs/quickstart_ppo runs/quickstart_dqn"
    assert calls[4:] == ["evals/ppo_eval.py results/agents/ppo_l1-0.5_s1 --out runs/quickstart_agent.csv"]
    assert "random play scores 153" in done.stdout and "tensorboard --logdir runs" in done.stdout


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_quickstart_says_which_training_failed_and_exits_with_its_code(tmp_path, algorithm):
    done, calls = quickstart_with_a_stub(tmp_path, f"{algorithm}_atari_prune.py")
    assert done.returncode == 3
    assert done.stderr == f"error: the {algorithm.upper()} run failed (exit 3)\n"
    assert len(calls) == 3, "the other training was not waited for, or a table was printed"


def test_quickstart_trains_nothing_when_the_installation_fails(tmp_path):
    done, calls = quickstart_with_a_stub(tmp_path, "'-m pip'")
    assert done.returncode == 3 and len(calls) == 1


# ------------------------------------------------------------------------------------------------------------------ table
SUMMARY = {
    "global_step": 24576,
    "total": 1000,
    "pruned": 250,
    "nonzero": 745,
    "eval": {
        "before_prune": {"n": 3, "mean": 201.25, "std": 9.0, "ci95": [178.0, 224.5]},
        "after_prune": {"n": 3, "mean": 90.0, "std": 0.0, "ci95": [90.0, 90.0]},
        "final": {"n": 1, "mean": 155.0, "std": None, "ci95": None},
    },
    "disk": {"dense": 4000, "coo": 10000, "csr_int64": 9000, "csr_int32": 6500, "packed": 3000},
    "time": {"agent_steps_per_second_while_learning": 612.4},
}


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """make_run(name, **changes): a run folder under the working directory, with a summary if there are any changes to it."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, finished: bool = True, **changes) -> str:
        Path(name).mkdir()
        if finished:
            (Path(name) / "summary.json").write_text(json.dumps(SUMMARY | changes))
        return name

    return make


def printed_table(monkeypatch, capsys, *runs: str) -> str:
    monkeypatch.setattr(sys, "argv", ["table.py", *runs])
    table.main()
    return capsys.readouterr().out


def test_the_table_shows_what_the_summary_says(make_run, monkeypatch, capsys):
    lines = printed_table(monkeypatch, capsys, make_run("a")).splitlines()
    assert lines[0].split() == ["a"]
    cells = {label.strip(): cell.strip() for label, cell in (line.split("  ", 1) for line in lines[1:-1])}
    assert cells == {
        "agent steps": "24,576",
        "games a moment": "3 / 3 / 1",
        "return before the cut": "201.2 [178.0, 224.5]",
        "return right after": "90.0 [90.0, 90.0]",
        "return at the end": "155.0",  # one game has no interval
        "zeros": "255 of 1,000 (25.5%)",  # entries that are 0 by value: 1000 - 745, five more than were pruned
        "bytes, dense": "4,000",
        "bytes, COO": "10,000 (2.50x)",
        "bytes, CSR int64": "9,000 (2.25x)",
        "bytes, CSR int32": "6,500 (1.62x)",
        "bytes, packed": "3,000 (0.75x)",
        "agent steps a second": "612",
    }


def test_each_run_has_its_own_column_in_the_order_given(make_run, monkeypatch, capsys):
    runs = [make_run("b", global_step=11), make_run("a", global_step=22)]
    lines = printed_table(monkeypatch, capsys, *runs).splitlines()
    assert lines[0].split() == ["b", "a"]
    assert lines[1].split() == ["agent", "steps", "11", "22"]


def test_what_a_run_did_not_measure_is_a_dash_and_no_number(make_run, monkeypatch, capsys):
    time = {"agent_steps_per_second_while_learning": None}
    run = make_run("a", eval={}, disk={"dense": 4000}, time=time)
    lines = printed_table(monkeypatch, capsys, run).splitlines()
    dashes = [line.rsplit("  ", 1)[0].strip() for line in lines[1:-1] if line.split()[-1] == "-"]
    unmeasured = ["games a moment", "return before the cut", "return right after", "return at the end"]
    formats = ["bytes, COO", "bytes, CSR int64", "bytes, CSR int32", "bytes, packed"]
    assert dashes == [*unmeasured, *formats, "agent steps a second"]


def test_a_run_without_a_summary_is_named_as_unfinished_beside_those_that_have_one(make_run, monkeypatch, capsys):
    out = printed_table(monkeypatch, capsys, make_run("a"), make_run("b", finished=False), "nowhere")
    assert out.splitlines()[0].split() == ["a"]
    assert out.splitlines()[-2:] == ["unfinished, no summary.json: b", "unfinished, no summary.json: nowhere"]


@pytest.mark.parametrize("torn, error", [("{", "JSONDecodeError"), ("[]", "AttributeError"), ("{}", "KeyError")])
def test_a_run_with_a_broken_summary_is_named_beside_those_that_have_a_whole_one(torn, error, make_run, monkeypatch, capsys):
    whole, broken = make_run("a"), make_run("b")
    Path(broken, "summary.json").write_text(torn)
    out = printed_table(monkeypatch, capsys, broken, whole)
    assert out.splitlines()[0].split() == ["a"]
    assert out.splitlines()[-1] == f"broken, summary.json cannot be read ({error}): b"


@pytest.mark.parametrize("names", [[], ["b"]], ids=["no run given", "none finished"])
def test_no_finished_run_is_an_error_with_exit_code_2(make_run, monkeypatch, capsys, names):
    with pytest.raises(SystemExit) as stopped:
        printed_table(monkeypatch, capsys, *(make_run(name, finished=False) for name in names))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "error: no finished run" in captured.err
    assert captured.out == "".join(f"unfinished, no summary.json: {name}\n" for name in names)


# ---------------------------------------------------------------------------------------------------------------- collect
def test_collect_keeps_what_the_report_needs_in_the_same_bytes_and_names_a_run_that_is_not_finished(small_run, tmp_path):
    run, unfinished = small_run("ppo", prune_type="none"), tmp_path / "half"
    unfinished.mkdir(), (tmp_path / "one" / f".{run.name}.part").mkdir(parents=True)  # of a copy that was killed
    for study in ("one", "two"):
        done = bash(str(ROOT / "scripts" / "collect.sh"), str(tmp_path / study), str(run), str(unfinished))
        assert done.returncode == 0 and done.stderr == f"not finished: {unfinished}\n"
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / study / run.name).iterdir()} for study in ("one", "two"))
    assert one == two and one.keys() == {"config.json", "summary.json", "eval.csv", "curves.csv.gz"}
    assert gzip.decompress(one.pop("curves.csv.gz")) == (run / "curves.csv").read_bytes()
    assert all(data == (run / name).read_bytes() for name, data in one.items())
    assert [path.name for path in (tmp_path / "one").iterdir()] == [run.name]
    assert bash(str(ROOT / "scripts" / "collect.sh")).returncode == 2
    itself = bash(str(ROOT / "scripts" / "collect.sh"), str(tmp_path / "one"), str(tmp_path / "one" / run.name))
    assert itself.returncode == 2 and "is the run itself" in itself.stderr
    assert len(list((tmp_path / "one" / run.name).iterdir())) == 4
    (tmp_path / "one" / run.name / "config.json").write_text("of another run")
    for folder, told in ((run, "is another run"), (tmp_path / "nowhere", "no such run folder")):
        refused = bash(str(ROOT / "scripts" / "collect.sh"), str(tmp_path / "one"), str(folder))
        assert refused.returncode == 2 and told in refused.stderr
    assert (tmp_path / "one" / run.name / "config.json").read_text() == "of another run"
