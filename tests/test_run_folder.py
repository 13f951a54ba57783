"""A run folder belongs to one run: finished, unfinished, another's, in use, replaced; and to its user, whose files stay."""

import fcntl
import itertools
import json
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from prune_utils.basics import Busy, UserError, write_atomically
from prune_utils.log import Log
from prune_utils.run import MOMENTS, OWN_FILES, Run, default_run_name, differences, identity, read_config
from tests.conftest import SCRIPTS, SHORT, SMALL, rows

script = SCRIPTS["ppo"]
MINE = ("notes.txt", "checkpoint_best.pt", "checkpoints/1.pt", "model.pt.bak", "draft.part", "figures/source.py", "x.csv")


def small(tmp_path, algorithm: str = "ppo", **options):
    options = SMALL[algorithm] | {"runs_dir": str(tmp_path), "run_name": "r"} | options
    return SCRIPTS[algorithm].Args(**options)


@contextmanager
def opened(args):
    run = Run(args, "ppo", script.__file__)
    try:
        yield run
    finally:
        run.leave()


def begun(tmp_path, **options) -> Path:
    """A folder of a run that was ended before its first checkpoint."""
    with opened(small(tmp_path, **options)) as run:
        return run.folder


def finished(tmp_path) -> Path:
    folder = begun(tmp_path)
    (folder / "summary.json").write_text("{}")
    return folder


def change_config(folder: Path, **changes) -> None:
    """Give parts of config.json other values; None removes a name."""
    config = json.loads((folder / "config.json").read_text())
    for part, values in changes.items():
        config[part] = {name: value for name, value in (config[part] | values).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def change_checkpoint(file: Path, **changes) -> None:
    checkpoint = torch.load(file, weights_only=True)
    for part, value in changes.items():
        checkpoint[part] = checkpoint[part] | value if isinstance(value, dict) else value
    torch.save(checkpoint, file)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("cuda", "told"), [(True, "no CUDA device: training on the CPU\n"), (False, "")])
def test_cuda_wanted_where_there_is_none_is_no_error_but_a_line(cuda, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    begun(tmp_path, cuda=cuda)
    assert capsys.readouterr().err == told


def test_a_finished_run_says_so_and_what_has_changed_since_and_is_left_as_it_is(tmp_path, capsys):
    folder = finished(tmp_path)
    before = contents(folder)
    assert script.train(small(tmp_path)) == folder
    assert capsys.readouterr().out == f"{folder} is finished; --overwrite starts anew\n"
    with pytest.raises(UserError, match=r"is finished \(--overwrite starts it anew\), got prune_rate 0.3 -> 0.5$"):
        script.train(small(tmp_path, prune_rate=0.5, track=True))
    assert contents(folder) == before
    change_config(folder, resolved={"torch": "1.0"})
    assert script.train(small(tmp_path, track=True)) == folder
    assert f"(since then: torch 1.0 -> {torch.__version__})" in capsys.readouterr().out


def test_checkpoints_that_a_kill_left_in_a_finished_run_go_at_the_next_start(tmp_path):
    folder = finished(tmp_path)
    for name in ("checkpoint.pt", "checkpoint_previous.pt", "prune_point.pt", "checkpoint_best.pt"):
        (folder / name).touch()
    script.train(small(tmp_path))
    assert {p.name for p in folder.glob("*.pt")} == {"prune_point.pt", "checkpoint_best.pt"}


def test_overwrite_starts_anew(tmp_path):
    folder = finished(tmp_path)
    for name in ("eval.csv", "checkpoint.pt", "prune_point.pt", "source.py", "model.pt.part", "wandb_id"):
        (folder / name).touch()
    with opened(small(tmp_path, overwrite=True, prune_rate=0.5)) as run:
        assert json.loads((folder / "config.json").read_text())["options"]["prune_rate"] == 0.5 and not run.checkpoint
    assert {p.name for p in folder.iterdir()} == {".lock", "config.json", "source"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_files_of_the_user_in_a_run_folder_survive_overwrite_and_the_restart_of_an_unfinished_run(tmp_path, overwrite):
    folder = begun(tmp_path)
    for name in (*MINE, *(own for own in OWN_FILES if "*" not in own and own != "source")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    for name in ("summary.json", "checkpoint.pt", "checkpoint_previous.pt"):
        (folder / name).unlink()
    with opened(small(tmp_path, overwrite=overwrite)) as run:
        assert not run.finished
        left = {name for name, data in contents(folder).items() if data == b"mine"}
    assert left == set(MINE)


def test_a_run_ends_in_a_folder_with_files_of_the_user_and_leaves_them_there(tmp_path):
    folder = begun(tmp_path, **SHORT["ppo"])
    for name in MINE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    assert script.train(small(tmp_path, **SHORT["ppo"])) == folder and (folder / "summary.json").exists()
    assert {name for name, data in contents(folder).items() if data == b"mine"} == set(MINE)


def test_an_unfinished_run_starts_again_with_its_own_options_and_is_refused_by_name_with_others(tmp_path):
    folder = begun(tmp_path)
    with pytest.raises(UserError, match=r"^--run-name must name another run: .* is not the same .*got gamma 0\.99 -> 0\.9$"):
        Run(small(tmp_path, gamma=0.9), "ppo", script.__file__)
    source = read_config(folder)["resolved"]["source_sha256"]
    change_config(folder, resolved={"source_sha256": "another script"})
    with pytest.raises(UserError, match=r"text of script or prune_utils \(SHA-256 another  -> "):
        Run(small(tmp_path), "ppo", script.__file__)
    change_config(folder, resolved={"source_sha256": source})
    with opened(small(tmp_path, capture_video=True)) as run:
        assert not run.finished


def test_a_run_without_a_cut_is_the_same_at_any_prune_rate_and_one_with_a_cut_is_not(tmp_path, capsys):
    folder = begun(tmp_path, prune_type="none")
    rest = {"prune_rate": 0.9, "prune_scope": "global", "prune_bias": False}
    with opened(small(tmp_path, prune_type="none", **rest)) as run:
        assert not run.finished
    (folder / "summary.json").write_text("{}")
    assert script.train(small(tmp_path, prune_type="none", **rest)) == folder
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder} is finished; --overwrite starts anew"
    begun(tmp_path, run_name="l1")
    with pytest.raises(UserError, match=r"got prune_rate 0\.3 -> 0\.9, prune_scope layer -> global, prune_bias True -> False$"):
        Run(small(tmp_path, run_name="l1", **rest), "ppo", script.__file__)


def test_a_run_of_an_earlier_version_goes_on_with_the_default_of_an_option_that_it_did_not_know(tmp_path, capsys):
    folder = begun(tmp_path)
    change_config(folder, options={"until_cut": None, "prune_scope": None, "num_steps": None})
    with opened(small(tmp_path)) as run:
        assert not run.finished
    change_config(folder, options={"until_cut": None, "prune_scope": None, "num_steps": None})
    with pytest.raises(UserError, match=r"got num_steps 128 -> 64$"):
        Run(small(tmp_path, num_steps=64), "ppo", script.__file__)
    (folder / "summary.json").write_text("{}")
    script.train(small(tmp_path))
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder} is finished; --overwrite starts anew"


def test_differences_name_what_both_know_and_each_value():
    old = {"seed": 1, "gamma": 0.9, "torch": "2.11", "gone": 1}
    new = {"seed": 2, "gamma": 0.9, "torch": "2.13", "eval_epsilon": 0.01}
    assert differences(old, new) == "seed 1 -> 2, torch 2.11 -> 2.13"
    assert differences(old, new, {"seed"}) == "torch 2.11 -> 2.13" and differences(old, old) == ""


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"options": {}}', "\udcff"])
def test_a_config_that_no_run_wrote_is_none(tmp_path, text):
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_config(tmp_path) == {} and read_config(tmp_path / "config.json") == {}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    "name, text", [("thesis.tex", "years of work"), ("config.json", '{"model": "a"}'), ("config.json", "[")]
)
def test_a_folder_of_something_else_is_never_touched(tmp_path, name, text, overwrite):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text(text)
    with pytest.raises(UserError, match="--run-name must not name a folder that holds other files"):
        Run(small(tmp_path, overwrite=overwrite), "ppo", script.__file__)
    assert [p.name for p in (tmp_path / "r").iterdir()] == [name] and (tmp_path / "r" / name).read_text() == text


def test_a_fork_is_held_against_its_parent_until_it_has_a_checkpoint_of_its_own_and_then_needs_it_no_more(small_run, tmp_path):
    dense = small_run("ppo", "short", **SHORT["ppo"], prune_type="none")
    parent = begun(tmp_path, **SHORT["ppo"], run_name="dense", prune_type="none")
    fork = small(tmp_path, **SHORT["ppo"], fork_from=str(parent))
    with pytest.raises(UserError, match=r"--fork-from must be the folder of a dense run with a prune_point\.pt"):
        Run(fork, "ppo", script.__file__)
    assert not (tmp_path / "r").exists()
    shutil.copy(dense / "prune_point.pt", parent)
    with opened(fork) as run:
        assert (run.folder / "checkpoint.pt").read_bytes() == (parent / "prune_point.pt").read_bytes()
    (run.folder / "checkpoint.pt").unlink()  # as if it had been killed before it had one
    change_checkpoint(parent / "prune_point.pt", resolved={"torch": "1.0"})
    with pytest.raises(UserError, match=r"--fork-from must be a run of the same .*torch 1\.0 -> "):
        Run(fork, "ppo", script.__file__)
    shutil.copy(dense / "prune_point.pt", run.folder / "checkpoint.pt")
    shutil.rmtree(parent)
    with opened(fork) as run:
        assert run.checkpoint["global_step"] == 80
    (run.folder / "summary.json").touch()
    assert Run(fork, "ppo", script.__file__).finished


def test_a_fork_that_loses_its_parent_while_it_begins_ends_with_a_line(small_run, tmp_path, monkeypatch, main, capsys):
    parent = shutil.copytree(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"), tmp_path / "dense")
    delete = Run.delete

    def lose_the_parent(run, patterns):
        (parent / "prune_point.pt").unlink()
        delete(run, patterns)

    monkeypatch.setattr(Run, "delete", lose_the_parent)
    options = SHORT["ppo"] | {"fork_from": str(parent), "runs_dir": str(tmp_path), "run_name": "fork"}
    assert main("ppo", options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and str(parent / "prune_point.pt") in error
    monkeypatch.undo()
    assert main("ppo", options) == 2 and "a dense run with a prune_point.pt" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["finished", "unfinished", "at its cut"])
@pytest.mark.parametrize("options", [{"overwrite": True}, {"overwrite": False}, {"overwrite": True, "fork_seed": 1}], ids=str)
def test_a_fork_into_the_folder_of_its_own_parent_is_refused(small_run, tmp_path, state, options):
    parent = shutil.copytree(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"), tmp_path / "r")
    if state != "finished":
        (parent / "summary.json").unlink()
    if state == "at its cut":
        shutil.copy(parent / "prune_point.pt", parent / "checkpoint.pt")
    before = contents(parent)
    for prune_type, folder in (("l1", parent), ("none", f"{tmp_path}/../{tmp_path.name}/r")):
        args = small(tmp_path, **SHORT["ppo"], fork_from=str(folder), prune_type=prune_type, **options)
        with pytest.raises(UserError, match=r"^--fork-from must be another folder than the run's own, got "):
            Run(args, "ppo", script.__file__)
    assert contents(parent) == before


STRANGE = {
    "another seed": ("ppo", {"seed": 2}, "seed 1 -> 2"),
    "another gamma": ("ppo", {"gamma": 0.9}, "gamma 0.99 -> 0.9"),
    "another width": ("ppo", {"hidden_size": 32}, "hidden_size 64 -> 32"),
    "another game": ("ppo", {"env_id": "PongNoFrameskip-v4"}, "env_id SpaceInvadersNoFrameskip-v4 -> PongNoFrameskip-v4"),
    "another cut": ("ppo", {"prune_type": "l1"}, "prune_type none -> l1"),
    "another algorithm": ("dqn", {}, "algorithm dqn -> ppo"),
}


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint_previous.pt"])
@pytest.mark.parametrize("case", STRANGE)
def test_a_checkpoint_of_another_run_copied_into_a_folder_is_refused_by_what_differs(small_run, tmp_path, case, name):
    algorithm, options, difference = STRANGE[case]
    dense = small_run(algorithm, "short", **SHORT[algorithm], prune_type="none")
    options = SHORT["ppo"] | {"prune_type": "none"} | options
    folder = begun(tmp_path, **options)
    shutil.copy(dense / "prune_point.pt", folder / name)
    before = contents(folder)
    with pytest.raises(UserError, match=f"^--run-name must .*{re.escape(difference)}"):
        Run(small(tmp_path, **options), "ppo", script.__file__)
    assert contents(folder) == before


@pytest.mark.parametrize("case", ["another seed", "another gamma", "another width", "another game", "another algorithm"])
def test_a_prune_point_of_another_run_copied_into_a_parent_is_refused_by_what_differs(small_run, tmp_path, case):
    algorithm, options, difference = STRANGE[case]
    dense = small_run(algorithm, "short", **SHORT[algorithm], prune_type="none")
    options = SHORT["ppo"] | options
    parent = begun(tmp_path, **options, run_name="dense", prune_type="none")
    shutil.copy(dense / "prune_point.pt", parent)
    with pytest.raises(UserError, match=f"^--fork-from must .*{re.escape(difference)}"):
        Run(small(tmp_path, **options, fork_from=str(parent)), "ppo", script.__file__)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("parent", "told"), [("", "."), ("x" * 300, "x" * 300)])  # a variable that is not set; too long
def test_a_fork_from_a_name_of_no_folder_is_refused_and_does_not_train_from_scratch(parent, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = "--fork-from must be the folder of a dense run with a prune_point.pt, which it writes at its cut, got "
    with pytest.raises(UserError, match=f"^{rule}{re.escape(told)}$"):
        Run(small(tmp_path, **SHORT["ppo"], prune_type="none", fork_from=parent, fork_seed=1), "ppo", script.__file__)
    assert not (tmp_path / "r").exists()


def test_a_dense_run_that_is_at_work_does_not_become_a_fork(tmp_path):
    options = SHORT["ppo"] | {"prune_type": "none"}
    with opened(small(tmp_path, **options)) as run:
        run.resume({})
        run.save(32)
    rule = f"--fork-from must be what it was when the run in {run.folder} began (not given), got elsewhere"
    with pytest.raises(UserError, match=f"^{re.escape(rule)}$"):
        Run(small(tmp_path, **options, fork_from="elsewhere"), "ppo", script.__file__)


def test_a_fork_that_is_at_its_parent_s_cut_does_not_become_a_run_from_scratch(small_run, tmp_path):
    options = SHORT["ppo"] | {"prune_type": "none"}
    dense = small_run("ppo", "short", **options)
    with opened(small(tmp_path, **options, fork_from=str(dense))) as run:
        pass
    rule = f"--fork-from must be what it was when the run in {run.folder} began ({dense}), got nothing"
    with pytest.raises(UserError, match=f"^{re.escape(rule)}$"):
        Run(small(tmp_path, **options), "ppo", script.__file__)


@pytest.mark.parametrize("cuts_done", [1, 0])
def test_a_fork_goes_on_from_no_checkpoint_but_its_own_and_its_parents_prune_point(small_run, tmp_path, cuts_done):
    # the same seed and options: from scratch with another criterion, before its cut or after it
    dense = small_run("ppo", "short", **SHORT["ppo"], prune_type="none")
    fork = small(tmp_path, **SHORT["ppo"], fork_from=str(dense))
    with opened(fork) as run:
        folder = run.folder
    change_checkpoint(folder / "checkpoint.pt", options={"prune_type": "random"}, cuts_done=cuts_done)
    with pytest.raises(UserError, match=r"^--run-name must .*prune_type random -> l1"):
        Run(fork, "ppo", script.__file__)


def test_a_run_from_scratch_is_no_fork_of_the_same_name_with_another_cut(small_run, tmp_path):
    dense = small_run("ppo", "short", **SHORT["ppo"], prune_type="none")
    folder = begun(tmp_path, **SHORT["ppo"])
    before = contents(folder)
    for options, difference in (
        ({"prune_type": "random"}, "prune_type l1 -> random"),
        ({"fork_seed": 3}, "fork_seed None -> 3"),
    ):
        with pytest.raises(UserError, match=f"^--run-name must .*{difference}"):
            Run(small(tmp_path, **SHORT["ppo"], fork_from=str(dense), **options), "ppo", script.__file__)
    assert contents(folder) == before


class Replaced(Exception):
    """The folder was deleted, and perhaps made anew."""


@pytest.mark.parametrize("successor", [True, False])
@pytest.mark.parametrize(
    "moment, options",
    [
        ("evaluate", {"eval_episodes": 1}),
        ("log_cut", {"checkpoint_minutes": 1e-9}),
        ("finish", {}),
        ("finish", {"save_model": False}),
        ("save_prune_point", {"prune_type": "none"}),
    ],
    ids=str,
)
def test_a_run_whose_folder_is_deleted_or_made_anew_notices_it_and_writes_nothing_more(
    tmp_path, monkeypatch, moment, options, successor, main, capsys
):
    folder, expected = tmp_path / "r", {}
    options = SHORT["ppo"] | {"runs_dir": str(tmp_path), "run_name": "r"} | options
    then = getattr(Run, moment)

    def replace(run, *args):
        if folder.exists() and not expected:
            run.log.tensorboard.flush()  # a thread of its own writes
            shutil.rmtree(folder)
            if successor:
                with opened(script.Args(**(options | {"seed": 2}))):
                    (folder / "curves.csv").write_text("of the successor")
            expected.update(contents(folder) or {"none": b""})
        return then(run, *args)

    monkeypatch.setattr(Run, moment, replace)
    assert main("ppo", options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {folder} was deleted or replaced while this run was at work in it"
    assert expected == (contents(folder) if successor else {"none": b""}) and folder.exists() == successor


def test_curves_that_an_editor_replaces_under_a_run_end_whole_and_it_says_so(small_run, tmp_path, monkeypatch, capsys):
    whole = small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5)
    log_cut, seen = Run.log_cut, []

    def edit(run, *args):
        file = run.folder / "curves.csv"
        seen.append(len(rows(file)))
        write_atomically(file, b"global_step,tag,value\n1,x,2\n")  # another file of the same name, as editors do it
        log_cut(run, *args)

    monkeypatch.setattr(Run, "log_cut", edit)
    folder = script.train(small(tmp_path, **SHORT["ppo"], prune_rate=0.5))
    assert (folder / "curves.csv").read_bytes() == (whole / "curves.csv").read_bytes() and len(seen) == 1
    assert f"{folder / 'curves.csv'} was replaced while this run wrote to it" in capsys.readouterr().err


def test_a_run_folder_in_use_is_refused_with_exit_code_75(tmp_path, main, capsys):
    options = SMALL["ppo"] | {"runs_dir": str(tmp_path), "run_name": "r"}
    with opened(script.Args(**options)) as run:
        with open(run.folder / ".lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Busy):
            Run(script.Args(**options), "ppo", script.__file__)
        assert main("ppo", options) == 75
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {run.folder} is in use by another process"
    with opened(script.Args(**options)) as run:
        assert not run.finished


def test_what_another_process_did_before_the_lock_was_taken_is_not_done_again(tmp_path, monkeypatch):
    folder, lock = begun(tmp_path), Run.lock

    def late(run: Run) -> None:
        (folder / "summary.json").write_text("{}")  # the other process finishes just now
        lock(run)

    monkeypatch.setattr(Run, "lock", late)
    with pytest.raises(Busy, match="was in use by another process until now"):
        Run(small(tmp_path), "ppo", script.__file__)
    assert (folder / "summary.json").exists()


def test_a_run_that_starts_again_before_its_first_checkpoint_keeps_its_wandb_run(tmp_path):
    folder = begun(tmp_path)
    (folder / "wandb_id").write_text("r-1")
    with opened(small(tmp_path)):
        assert (folder / "wandb_id").read_text() == "r-1"


def test_the_default_name_says_every_option_that_shapes_the_result_and_no_other(tmp_path):
    name = lambda **options: default_run_name(script.Args(**options))  # noqa: E731
    assert name() == "SpaceInvadersNoFrameskip-v4__ppo_atari_prune__l1-0.3__s1"
    assert name(prune_type="none", prune_rate=0.5) == "SpaceInvadersNoFrameskip-v4__ppo_atari_prune__none__s1"
    assert name(prune_type="none", prune_scope="global", prune_bias=False) == name(prune_type="none")
    assert name(env_id="ALE/Pong-v5", seed=7, gamma=0.9) == "ALE-Pong-v5__ppo_atari_prune__l1-0.3__s7__gamma-0.9"
    told = {"track": True, "save_model": False, "overwrite": True, "runs_dir": "x", "capture_video": True}
    assert name(**told) == name() and name(fork_from="dense") == name()
    assert name(prune_type="none", until_cut=True) == name(prune_type="none")
    assert name(fork_from="dense", fork_seed=2, prune_type="none").endswith("__none-fork2__s1")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name(prune_scope="global", prune_bias=False, target_kl=0.02))


def test_a_default_name_too_long_for_the_disk_ends_in_a_hash_of_it_and_works(tmp_path):
    options = {"ent_coef": 0.0123, "vf_coef": 0.4567, "clip_coef": 0.1234, "gae_lambda": 0.9123, "max_grad_norm": 0.4321}
    options |= {"anneal_lr": False, "clip_vloss": False, "prune_at": 0.456, "num_steps": 100, "run_name": None}
    args = [small(tmp_path, **options, gamma=gamma) for gamma in (0.987, 0.9871)]
    names = [default_run_name(each) for each in args]
    assert [len(name) for name in names] == [197, 197] and names[0][:180] == names[1][:180] and names[0] != names[1]
    assert all(re.fullmatch("[0-9a-f]{16}", name[181:]) for name in names)
    assert names[0].startswith("SpaceInvadersNoFrameskip-v4__ppo_atari_prune__l1-0.3__s1__")
    with opened(args[0]) as run:
        assert run.folder == tmp_path / names[0] and (run.folder / "config.json").exists()
    args[0].run_name = names[0]
    with opened(args[0]) as run:
        assert run.folder == tmp_path / names[0]


def test_config_json_alone_explains_the_run(tmp_path):
    args = small(tmp_path)
    folder = begun(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["options"] == asdict(args) and config["algorithm"] == "ppo" and config["parent"] is None
    assert config["resolved"].keys() == {"device", "precision", "num_threads", "torch", "ale_py", "source_sha256"}
    assert config["versions"].keys() == {"python", "numpy", "gymnasium"} and config["device_name"] and config["command"]
    git = ["git", "-C", str(Path(__file__).parents[1]), "describe", "--always"]
    here = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    assert (config["git"] or "").removesuffix("-dirty") == here
    assert identity(config).keys() > {"seed", "gamma", "prune_rate", "torch"} and "runs_dir" not in identity(config)


def test_the_signals_that_a_run_listens_to_are_given_back_and_one_that_is_ignored_stays_so(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with opened(small(tmp_path)) as run:
        assert [signal.getsignal(number) for number in numbers] == [run.on_signal] * 3
    assert [signal.getsignal(number) for number in numbers] == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it
    try:
        with opened(small(tmp_path)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[2])


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    write_atomically(file, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"


def test_masks_forks_and_evaluations_of_other_seeds_draw_other_numbers(tmp_path, monkeypatch):
    masks, forks, evaluations = [], [], []

    def play(policy, env_id, episodes, seed, num_threads, each_step):
        evaluations.append(seed)
        each_step(np.zeros(1, int))
        return [{"return": 1.0}]

    monkeypatch.setattr("prune_utils.evaluation.play", play)
    monkeypatch.setattr(Run, "measure_health", lambda *_: {})
    monkeypatch.setattr("prune_utils.device.fp32_copy", lambda network: network)
    for seed, fork_seed in itertools.product((1, 2), (1, 2)):
        args = small(tmp_path, seed=seed, run_name=f"s{seed}f{fork_seed}")
        with opened(args) as run:
            parts = {"actions": torch.Generator(), "minibatches": torch.Generator()}
            saved = {"global_step": 0, "cuts_done": 0, "evaluations": [], "measures": {}, "log": None, "device_name": "a CPU"}
            saved |= {"options": {"prune_type": "none", "fork_from": None}}
            run.checkpoint = saved | {"parts": {name: part.get_state() for name, part in parts.items()}}
            run.parent, args.fork_seed = tmp_path / "dense", fork_seed  # as of a fork
            run.resume(parts)
            forks += [generator.initial_seed() for generator in parts.values()]
            for own_seed, cuts_done in ((fork_seed, 0), (fork_seed, 1), (None, 0)):
                args.fork_seed, run.cuts_done = own_seed, cuts_done
                masks.append(run.mask_seed())
            if fork_seed == 1:
                for moment in MOMENTS:
                    run.evaluate(moment, 0, None, lambda network, seed: None)
            run.log.close()
    assert len(set(masks)) == 10  # 2 seeds x (2 forks x 2 cuts, and 1 without a fork seed)
    assert len(set(forks)) == len(forks) == 8
    assert len(set(evaluations)) == len(evaluations) == 6


def test_summary_json_is_written_last_when_the_logs_are_closed(tmp_path, monkeypatch):
    events, write, close = [], Run.write, Log.close
    monkeypatch.setattr(Run, "write", lambda run, name, *x, **given: [write(run, name, *x, **given), events.append(name)])
    monkeypatch.setattr(Log, "close", lambda log, *rest: [close(log, *rest), events.append("closed")])
    script.train(script.Args(**SHORT["ppo"], runs_dir=str(tmp_path)))
    assert events[-3:] == ["curves.csv", "closed", "summary.json"]
