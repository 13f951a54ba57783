"""The table of finished runs: python -m analysis.table."""

import json
import sys
from pathlib import Path

import pytest

from analysis import table

ROOT = Path(__file__).resolve().parents[1]

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
    "time": {"agent_steps_per_second_while_learning": 612.4, "agent_steps_per_second_after_cut": 700.2},
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
    monkeypatch.setattr(sys, "argv", ["analysis.table", *runs])
    table.main()
    return capsys.readouterr().out


def test_the_table_shows_what_the_summary_says(make_run, monkeypatch, capsys):
    lines = printed_table(monkeypatch, capsys, make_run("a")).splitlines()
    assert lines[0].split() == ["a"]
    cells = {label.strip(): cell.strip() for label, cell in (line.split("  ", 1) for line in lines[1:-4])}
    assert cells == {
        "agent steps": "24,576",
        "games per moment": "3 / 3 / 1",
        "return before the cut": "201.2 [178.0, 224.5]",
        "return right after it": "90.0 [90.0, 90.0]",
        "return after the cut": "-",
        "return at the end": "155.0",  # one game has no interval
        "parameters": "1,000 (1.00x)",
        "zeros": "255 of 1,000 (25.5%)",  # entries that are 0 by value: 1000 - 745, five more than were pruned
        "bytes, dense": "4,000 (1.00x)",
        "bytes, COO": "10,000 (2.50x)",
        "bytes, CSR int64": "9,000 (2.25x)",
        "bytes, CSR int32": "6,500 (1.62x)",
        "bytes, packed": "3,000 (0.75x)",
        "agent steps per second": "612",
        "before / after the cut": "- / 700",  # a fork did not learn before it
    }
    assert lines[-1] == "return after the cut unknown (config.json is missing: its options are not known): a"


def test_each_run_has_its_own_column_in_the_order_given(make_run, monkeypatch, capsys):
    runs = [make_run("b", global_step=11), make_run("a", global_step=22)]
    lines = printed_table(monkeypatch, capsys, *runs).splitlines()
    assert lines[0].split() == ["b", "a"]
    assert lines[1].split() == ["agent", "steps", "11", "22"]


def test_a_column_is_named_by_the_parts_of_the_folder_name_that_the_runs_do_not_share(make_run, monkeypatch, capsys):
    columns = ["none__s1", "l1-0.5__s1", "l1-0.5__s2", "l1-0.5__s1__prune_scope-erk"]
    runs = [make_run(f"game__ppo__{column}__eval_episodes-100") for column in columns]
    assert printed_table(monkeypatch, capsys, *runs).splitlines()[0].split() == columns
    header = printed_table(monkeypatch, capsys, *runs[:1]).splitlines()[0].split()
    assert header == [runs[0]]


def test_runs_of_one_name_in_two_folders_keep_their_paths(make_run, monkeypatch, capsys):
    for folder in ("here", "there"):
        Path(folder).mkdir()
    runs = [make_run("here/a"), make_run("there/a")]
    assert printed_table(monkeypatch, capsys, *runs).splitlines()[0].split() == runs


def test_what_a_run_did_not_measure_is_a_dash_and_no_number(make_run, monkeypatch, capsys):
    time = {"agent_steps_per_second_while_learning": None}
    run = make_run("a", eval={}, disk={"dense": 4000}, time=time)
    lines = printed_table(monkeypatch, capsys, run).splitlines()
    dashes = [line.rsplit("  ", 1)[0].strip() for line in lines[1:-3] if line.split()[-1] == "-"]
    unmeasured = ["games per moment", "return before the cut", "return right after it", "return at the end"]
    unmeasured += ["return after the cut"]
    formats = ["bytes, COO", "bytes, CSR int64", "bytes, CSR int32", "bytes, packed"]
    assert dashes == [*unmeasured, *formats, "agent steps per second", "before / after the cut"]


def test_the_return_after_the_cut_is_that_of_the_report(monkeypatch, capsys):
    name = "SpaceInvadersNoFrameskip-v4__ppo_atari_prune__{}__s2__num_threads-1__eval_episodes-100"
    runs = [str(ROOT / "results" / "study" / name.format(arm)) for arm in ("none", "l1-0.5")]
    lines = printed_table(monkeypatch, capsys, *runs).splitlines()
    assert next(line.split() for line in lines if "return after the cut" in line) == [
        "return",
        "after",
        "the",
        "cut",
        "419.2",
        "379.0",
    ]


def test_a_run_without_a_summary_is_named_as_unfinished_beside_those_that_have_one(make_run, monkeypatch, capsys):
    out = printed_table(monkeypatch, capsys, make_run("a"), make_run("b", finished=False), "nowhere")
    assert out.splitlines()[0].split() == ["a"]
    assert out.splitlines()[-2:] == ["unfinished, no summary.json: b", "no such folder: nowhere"]


@pytest.mark.parametrize("torn, error", [("{", "JSONDecodeError"), ("[]", "AttributeError"), ("{}", "KeyError")])
def test_a_run_with_a_broken_summary_is_named_beside_those_that_have_a_whole_one(torn, error, make_run, monkeypatch, capsys):
    whole, broken = make_run("a"), make_run("b")
    Path(broken, "summary.json").write_text(torn)
    out = printed_table(monkeypatch, capsys, broken, whole)
    assert out.splitlines()[0].split() == ["a"]
    assert out.splitlines()[-1] == "return after the cut unknown (config.json is missing: its options are not known): a"
    assert [line for line in out.splitlines() if line.endswith(": b")] == [f"broken, summary.json cannot be read ({error}): b"]


@pytest.mark.parametrize("names", [[], ["b"]], ids=["no run given", "none finished"])
def test_no_finished_run_is_an_error_with_exit_code_2(make_run, monkeypatch, capsys, names):
    with pytest.raises(SystemExit) as stopped:
        printed_table(monkeypatch, capsys, *(make_run(name, finished=False) for name in names))
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "error: no finished run" in captured.err
    assert captured.out == "".join(f"unfinished, no summary.json: {name}\n" for name in names)


def test_the_table_answers_help(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        printed_table(monkeypatch, capsys, "--help")
    assert stopped.value.code == 0 and "python -m analysis.table RUN..." in capsys.readouterr().out
