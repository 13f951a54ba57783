"""A run goes on, and forks, to the same bits as one that was never interrupted; a broken checkpoint is never used."""

import copy
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checks.kill_runs import bits, disturb
from prune_utils import evaluation, storage
from prune_utils.basics import Stop, UserError
from prune_utils.games import AtariGames
from prune_utils.run import Run, load_checkpoint
from tests.conftest import SCRIPTS, SHORT, SMALL, flags, rows, summary

ROOT = Path(__file__).resolve().parents[1]
both = pytest.mark.parametrize("algorithm", SCRIPTS)


def same_bits(a: Path, b: Path) -> bool:
    """But for how many steps a folder trained itself, which is what a fork saves."""
    one, two = bits(a), bits(b)
    for result in (one, two):
        del result["summary"]["agent_steps_run"]
    return one == two


def command(algorithm: str, folder: Path, **options) -> list[str]:
    options = SMALL[algorithm] | {"prune_rate": 0.5, "runs_dir": folder.parent, "run_name": folder.name} | options
    return [sys.executable, str(ROOT / f"{algorithm}_atari_prune.py"), *flags(options)]


def short(algorithm: str, folder: Path, **options) -> dict:
    """Options of a short run in a folder, pruned by l1 at 0.5 where they do not say otherwise."""
    return SHORT[algorithm] | {"prune_rate": 0.5, "runs_dir": str(folder.parent), "run_name": folder.name} | options


def changed(file: Path, **changes) -> None:
    """Change parts of a checkpoint."""
    checkpoint = torch.load(file, weights_only=True)
    file.unlink()
    torch.save(checkpoint | {name: checkpoint[name] | v if isinstance(v, dict) else v for name, v in changes.items()}, file)


# ----------------------------------------------------------------------------------------------------------------- forks
@both
@pytest.mark.parametrize("prune_type, precision", [("l1", "fp32"), ("random", "bf16")])
def test_a_fork_ends_in_the_same_bits_as_a_run_from_scratch_and_trains_half_the_steps(
    small_run, algorithm, prune_type, precision
):
    # in fp32 the channels of a real network; bf16 is slow where the CPU only emulates it
    size = SHORT[algorithm] | ({"width": 1.0, "eval_episodes": 1} if precision == "fp32" else {})
    pruned = size | {"prune_type": prune_type, "prune_rate": 0.5, "precision": precision}
    scratch = small_run(algorithm, **pruned)
    dense = small_run(algorithm, **(size | {"prune_type": "none", "precision": precision}))
    fork = small_run(algorithm, name="fork", fork_from=str(dense), **pruned)
    assert same_bits(fork, scratch)
    half = size["total_timesteps"] // 2
    assert summary(scratch)["agent_steps_run"] == 2 * half and summary(fork)["agent_steps_run"] == half
    assert json.loads((fork / "config.json").read_text())["parent"] == str(dense)
    assert (dense / "prune_point.pt").is_file() and [path.name for path in fork.glob("*.pt")] == ["model.pt"]


@both
def test_until_cut_ends_a_dense_run_at_its_cut_where_forks_begin_that_need_it_no_more_and_it_trains_on_without_it(
    small_run, algorithm, tmp_path, main, capsys, monkeypatch
):
    dense, fork, half = tmp_path / "dense", tmp_path / "fork", SHORT[algorithm]["total_timesteps"] // 2
    options = short(algorithm, dense, prune_type="none")
    for _ in range(2):
        assert main(algorithm, options | {"until_cut": True}) == 0
        last = f"stopped at the cut (step {half}); without --until-cut the same command continues: {dense}"
        assert capsys.readouterr().out.splitlines()[-1] == last
        files = {p.name for p in dense.iterdir() if not p.name.startswith("events.out.tfevents")}
        assert files == {".lock", "config.json", "source", "curves.csv", "checkpoint.pt", "prune_point.pt"}

    forking = short(algorithm, fork, fork_from=str(dense))
    run = Run(SCRIPTS[algorithm].Args(**forking), algorithm, SCRIPTS[algorithm].__file__)
    run.leave()
    assert (fork / "checkpoint.pt").read_bytes() == (dense / "prune_point.pt").read_bytes()

    log_cut = Run.log_cut
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_cut", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or log_cut(*args))
        assert main(algorithm, options) == 143
    assert main(algorithm, options | {"until_cut": True}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{dense} is past its cut"
    assert main(algorithm, options) == 0
    assert bits(dense) == bits(small_run(algorithm, "short", **SHORT[algorithm], prune_type="none"))
    assert main(algorithm, options | {"until_cut": True}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{dense} is finished; --overwrite starts anew"

    shutil.rmtree(dense)
    assert main(algorithm, forking) == 0
    assert f"{fork}: forked from {dense} at step {half} of {2 * half}" in capsys.readouterr().out
    assert same_bits(fork, small_run(algorithm, "short", **SHORT[algorithm], prune_rate=0.5))


# steps of 2 games, 120 in all, and rollouts of 16 steps, 10 in all: 0.3 of them are 36 and 3
CUTS = [
    (a, at, step, iteration)
    for a, steps, iteration in (("dqn", (0, 72, 240), 2), ("ppo", (0, 48, 160), 16))
    for at, step in zip((0, 0.3, 1), steps, strict=True)
]


@pytest.mark.parametrize("algorithm, prune_at, step, iteration", CUTS)
def test_the_cut_comes_once_wherever_it_lies_from_scratch_stopped_in_it_paused_before_it_and_forked(
    small_run, algorithm, prune_at, step, iteration, tmp_path, monkeypatch, main, capsys
):
    scratch = small_run(algorithm, "short", **SHORT[algorithm], prune_rate=0.5, prune_at=prune_at)
    cuts, log_cut = [], Run.log_cut

    def stop_in_the_first(run, global_step, counts):
        if not cuts:
            os.kill(os.getpid(), signal.SIGTERM)
        cuts.append((run.folder.name, global_step))
        log_cut(run, global_step, counts)

    monkeypatch.setattr(Run, "log_cut", stop_in_the_first)
    stopped, dense, fork = (tmp_path / name for name in ("stopped", "dense", "fork"))
    if prune_at < 1:  # it stops after the next iteration; a cut at the end is followed by none
        assert main(algorithm, short(algorithm, stopped, prune_at=prune_at)) == 143
        last = f"stopped by SIGTERM; the same command resumes from step {step + iteration}"
        assert capsys.readouterr().err.splitlines()[-1] == last
    assert main(algorithm, short(algorithm, stopped, prune_at=prune_at)) == 0
    assert prune_at == 1 or f"{stopped}: resumed at step {step + iteration} of " in capsys.readouterr().out
    for options in ({"until_cut": True}, {}):
        assert main(algorithm, short(algorithm, dense, prune_at=prune_at, prune_type="none") | options) == 0
    assert main(algorithm, short(algorithm, fork, prune_at=prune_at, fork_from=str(dense))) == 0
    assert cuts == [("stopped", step), ("dense", step), ("fork", step)]
    assert bits(stopped) == bits(scratch) and same_bits(fork, scratch)
    for folder in (scratch, dense):
        logged = [row["global_step"] for row in rows(folder / "curves.csv") if row["tag"] == "prune/sparsity"]
        assert logged == [str(step)]


def test_a_dqn_that_goes_on_between_two_updates_logs_the_losses_of_the_one_before(small_run):
    # updates at 992 and 1008, a log at 1000
    options = {"total_timesteps": 1200, "train_frequency": 16, "prune_at": 998 / 1200, "eval_episodes": 0}
    scratch = small_run("dqn", prune_type="l1", prune_rate=0.5, **options)
    dense = small_run("dqn", prune_type="none", **options)
    fork = small_run("dqn", name="fork", prune_type="l1", prune_rate=0.5, fork_from=str(dense), **options)
    logged = [row["global_step"] for row in rows(fork / "curves.csv") if row["tag"] == "losses/td_loss"]
    assert same_bits(fork, scratch) and logged == ["1000"] and summary(fork)["agent_steps_run"] == 202


@both
def test_a_a_arms_differ_by_their_fork_seed_alone_whatever_their_parent_does_meanwhile_and_another_machine_is_named(
    small_run, algorithm, tmp_path, capsys
):
    options = SHORT[algorithm] | {"prune_type": "none"}
    dense, elsewhere = small_run(algorithm, "short", **options), tmp_path / "dense"
    shutil.copytree(dense, elsewhere)
    changed(elsewhere / "prune_point.pt", device_name="an abacus")
    (elsewhere / "curves.csv").write_text("global_step,tag,value\n")  # as if it had just gone on from an early checkpoint
    forks = [
        small_run(algorithm, name=name, fork_from=str(parent), fork_seed=seed, **options)
        for name, parent, seed in (("one", dense, 1), ("other", dense, 2), ("same", elsewhere, 1))
    ]
    assert same_bits(forks[0], forks[2]) and bits(forks[0])["model.pt"] != bits(forks[1])["model.pt"]
    assert bits(forks[0])["model.pt"] != bits(dense)["model.pt"]
    assert capsys.readouterr().err.count("its checkpoint was made on an abacus, this is ") == 1
    before = [row for row in rows(dense / "curves.csv") if int(row["global_step"]) < options["total_timesteps"] // 2]
    assert (before or algorithm == "dqn") and rows(forks[1] / "curves.csv")[: len(before)] == before  # a DQN logs later
    assert summary(forks[1])["arm"] == "none-fork2"


def test_a_dense_run_that_resumes_at_its_cut_never_takes_its_prune_point_away_from_forks(small_run, tmp_path, monkeypatch):
    folder = shutil.copytree(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"), tmp_path / "a")
    (folder / "summary.json").unlink()
    shutil.copy(folder / "prune_point.pt", folder / "checkpoint.pt")
    point, there = folder / "prune_point.pt", []
    first = point.stat().st_ino

    def watched(function):
        def call(*paths, **options):
            there.append(point.exists())
            function(*paths, **options)
            there.append(point.exists())

        return call

    for name in ("replace", "unlink", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    args = SCRIPTS["ppo"].Args(**short("ppo", folder, prune_type="none"))
    assert SCRIPTS["ppo"].train(args) == folder and all(there) and len(there) >= 10
    assert point.stat().st_ino != first and not list(folder.glob("checkpoint*"))


@both
def test_a_fork_of_other_options_or_by_another_script_is_refused_and_the_difference_named(small_run, algorithm, tmp_path):
    dense = shutil.copytree(small_run(algorithm, "short", **SHORT[algorithm], prune_type="none"), tmp_path / "dense")
    base, script = short(algorithm, tmp_path / "fork", fork_from=str(dense)), SCRIPTS[algorithm]
    other = {"precision": "bf16", "num_threads": 2, "seed": 7, "learning_rate": 1e-3, "hidden_size": 65, "eval_episodes": 1}
    for option, value in other.items():
        with pytest.raises(UserError, match=rf"^--fork-from must .* \({dense} -> this run\), got {option} .* -> {value}$"):
            script.train(script.Args(**(base | {option: value})))
    with pytest.raises(UserError, match=r"with a prune_point\.pt"):
        script.train(script.Args(**(base | {"fork_from": str(tmp_path)})))
    changed(dense / "prune_point.pt", resolved={"source_sha256": "another script"})
    with pytest.raises(
        UserError, match=r"^--fork-from must .*, got text of script or prune_utils \(SHA-256 another  -> [0-9a-f]{8}\)$"
    ):
        script.train(script.Args(**base))
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


# --------------------------------------------------------------------------------------------------------------- signals
@both
def test_a_run_killed_again_and_again_ends_in_the_same_bits_with_no_gap_in_its_curves(small_run, algorithm, tmp_path):
    folder = tmp_path / "a"
    words = command(algorithm, folder, checkpoint_minutes=0.003)
    lives = disturb(words, folder, kills=3, patience=1.0, rng=random.Random(5))
    assert len(lives) == 4 and lives[-1][0] > 0 and lives[0][0] == 0
    assert same_bits(folder, small_run(algorithm, prune_type="l1", prune_rate=0.5))
    assert not list(folder.glob("checkpoint*"))
    curves = [(r["tag"], int(r["global_step"]), float(np.float32(r["value"]))) for r in rows(folder / "curves.csv")]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "charts/SPS"]
    shown = [(tag, e.step, e.value) for tag in tags for e in events.Scalars(tag)]
    assert set(shown) == set(curves)
    began = {step for step, _ in lives}  # what was logged at a checkpoint's own step is sent again
    assert sorted(point for point in shown if point[1] not in began) == sorted(p for p in curves if p[1] not in began)


def test_a_fork_killed_before_its_first_checkpoint_shows_its_parents_rows_once_on_tensorboard(small_run, tmp_path, monkeypatch):
    options = {"fork_from": str(small_run("ppo", "short", **SHORT["ppo"], prune_type="none")), "prune_rate": 0.5}
    args = SCRIPTS["ppo"].Args(**(SHORT["ppo"] | options | {"runs_dir": str(tmp_path), "run_name": "fork"}))

    def killed(run: Run, global_step: int):
        monkeypatch.undo()
        run.log.state_dict()  # writes what is in memory
        run.leave()
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "checkpoint_if_due", killed)
    with pytest.raises(KeyboardInterrupt):
        SCRIPTS["ppo"].train(args)
    time.sleep(1)  # TensorBoard reads files in the order of names: by the second, then as text by their number in the process
    folder = SCRIPTS["ppo"].train(args)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    shown = [(tag, e.step) for tag in events.Tags()["scalars"] if tag != "charts/SPS" for e in events.Scalars(tag)]
    assert sorted(shown) == sorted((row["tag"], int(row["global_step"])) for row in rows(folder / "curves.csv"))


@both
def test_a_signal_in_an_evaluation_ends_it_at_its_next_step_and_says_where_the_run_resumes(
    small_run, algorithm, tmp_path, monkeypatch, main, capsys
):
    played_once = SHORT[algorithm] | {"prune_rate": 0.5, "eval_episodes": 1}
    options = played_once | {"runs_dir": str(tmp_path), "run_name": "a"}
    half, play, played = options["total_timesteps"] // 2, evaluation.play, []

    def signal_in(index: int, number: signal.Signals):
        """Send a signal in the fifth step of the index-th evaluation of a process."""

        def play_and_send(policy, *rest):
            steps, index_here = [], len(played)
            played.append(steps)

            def act(obs):
                steps.append(obs)
                if index_here == index and len(steps) == 5:
                    os.kill(os.getpid(), number)
                return policy(obs)

            return play(act, *rest)

        return play_and_send

    # each process resumes with the evaluation in which the one before was stopped: before the cut, right after it, at the end
    lives = [(0, signal.SIGTERM, half), (1, signal.SIGHUP, half), (1, signal.SIGINT, 2 * half)]
    for index, number, step in lives:
        played.clear()
        monkeypatch.setattr(evaluation, "play", signal_in(index, number))
        assert main(algorithm, options) == 128 + number
        line = f"stopped by {number.name}; the same command resumes from step {step}"
        assert capsys.readouterr().err.splitlines()[-1] == line and not (tmp_path / "a" / "summary.json").exists()
        assert len(played) == index + 1 and len(played[-1]) == 5
    monkeypatch.undo()
    assert main(algorithm, options) == 0
    assert f"resumed at step {2 * half} of {2 * half}" in capsys.readouterr().out
    assert bits(tmp_path / "a") == bits(small_run(algorithm, "short", **played_once))


@pytest.mark.parametrize(
    ("prune_at", "lives"),
    [(0.0, [(1, 0, 0, 0), (2, 0, 1, 1), (2, 160, 1, 2)]), (1.0, [(1, 160, 0, 0), (2, 160, 1, 1), (2, 160, 1, 2)])],
)
def test_a_signal_in_an_evaluation_saves_a_run_without_other_checkpoints(
    prune_at, lives, small_run, tmp_path, monkeypatch, main, capsys
):
    """lives: in which evaluation a process is stopped; step, cuts and evaluations of the checkpoint that it leaves."""
    play, left = evaluation.play, []
    options = short("ppo", tmp_path / "a", prune_at=prune_at, eval_episodes=1, checkpoint_minutes=0.0)

    def send_in_the_last(*args):
        if left.pop() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return play(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "play", send_in_the_last)
        for evaluations, step, cuts, measured in lives:
            left[:] = range(1, evaluations + 1)
            assert main("ppo", options) == 143 and not left
            assert capsys.readouterr().err.splitlines()[-1] == f"stopped by SIGTERM; the same command resumes from step {step}"
            checkpoint = load_checkpoint(tmp_path / "a" / "checkpoint.pt")
            assert (checkpoint["global_step"], checkpoint["cuts_done"], len(checkpoint["measures"])) == (step, cuts, measured)
    assert main("ppo", options) == 0
    undisturbed = small_run("ppo", **SHORT["ppo"] | {"prune_rate": 0.5, "prune_at": prune_at, "eval_episodes": 1})
    assert bits(tmp_path / "a") == bits(undisturbed)


def test_a_run_that_gets_a_signal_while_it_is_saved_is_finished(small_run, tmp_path, monkeypatch, main):
    signals, pack = [], storage.pack
    with monkeypatch.context() as patch:
        send = lambda weights: signals.append(os.kill(os.getpid(), signal.SIGTERM)) or pack(weights)  # noqa: E731
        patch.setattr(storage, "pack", lambda weights: pack(weights) if signals else send(weights))
        assert main("ppo", short("ppo", tmp_path / "a")) == 0
    assert signals and bits(tmp_path / "a") == bits(small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5))


def test_a_run_that_was_started_anew_resumes_without_overwrite_as_it_says(small_run, tmp_path, monkeypatch, main, capsys):
    folder, listen = tmp_path / "a", Run.listen
    with monkeypatch.context() as patch:
        patch.setattr(Run, "listen", lambda run: listen(run) or os.kill(os.getpid(), signal.SIGTERM))
        assert main("ppo", short("ppo", folder, overwrite=True)) == 143
    told = capsys.readouterr().err
    assert "stopped by SIGTERM; the same command without --overwrite resumes from step 0" in told
    assert main("ppo", short("ppo", folder)) == 0 and "resumed at step 0" in capsys.readouterr().out
    assert bits(folder) == bits(small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5))


def test_a_run_folder_starts_anew_resumes_and_is_forked_by_its_own_copy_of_an_older_source(small_run, tmp_path, main, capsys):
    dense = small_run("ppo", "short", **SHORT["ppo"], prune_type="none")
    folder, fork = shutil.copytree(dense, tmp_path / "a"), tmp_path / "fork"
    with open(folder / "source" / "prune_utils" / "basics.py", "a") as file:
        file.write("# an older version\n")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.glob("source/**/*.py")}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"git": "of the copy"}))

    def copy(**options) -> None:
        words = [sys.executable, folder / "source" / "ppo_atari_prune.py", *flags(options)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    options = short("ppo", folder, prune_type="none")
    copy(**options, until_cut=True, overwrite=True)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.glob("source/**/*.py")} == before and len(before) > 5
    config = json.loads((folder / "config.json").read_text())
    assert config["git"] == "of the copy" and config["options"]["until_cut"] and not (folder / "summary.json").exists()
    for refused in (options, short("ppo", fork, fork_from=str(folder))):
        assert main("ppo", refused) == 2 and "got text of script or prune_utils (SHA-256 " in capsys.readouterr().err
    copy(**options)
    copy(**short("ppo", fork, fork_from=str(folder)))
    assert bits(folder) == bits(dense) and same_bits(fork, small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5))


def test_a_signal_while_the_checkpoint_is_read_ends_the_run_and_nothing_is_lost(small_run, tmp_path, monkeypatch, main, capsys):
    dense = small_run("ppo", "short", **SHORT["ppo"], prune_type="none")
    folder, restore = shutil.copytree(dense, tmp_path / "a"), AtariGames.load_state_dict
    (folder / "summary.json").unlink(), shutil.copy(folder / "prune_point.pt", folder / "checkpoint.pt")
    with monkeypatch.context() as patch:
        send = lambda *args: os.kill(os.getpid(), signal.SIGTERM) or restore(*args)  # noqa: E731
        patch.setattr(AtariGames, "load_state_dict", send)
        assert main("ppo", short("ppo", folder, prune_type="none")) == 143
    assert "stopped by SIGTERM; the same command resumes from step 80" in capsys.readouterr().err
    assert main("ppo", short("ppo", folder, prune_type="none")) == 0 and bits(folder) == bits(dense)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "first, last, seconds",
    [
        (signal.SIGTERM, signal.SIGINT, 0),
        (signal.SIGINT, signal.SIGTERM, 0),
        (signal.SIGHUP, signal.SIGTERM, 0),
        (signal.SIGTERM, signal.SIGTERM, 2),
        (signal.SIGINT, signal.SIGINT, 2),
        (signal.SIGHUP, signal.SIGHUP, 2),
    ],
)
def test_another_signal_or_the_same_after_a_second_ends_a_process_at_once_and_the_same_twice_in_a_row_does_not(
    tmp_path, first, last, seconds
):
    script = SCRIPTS["ppo"]
    args = script.Args(**short("ppo", tmp_path / "a", cuda=False))
    child = os.fork()
    if child == 0:
        try:
            run = Run(args, "ppo", script.__file__)
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), first)  # `timeout` and a terminal that closes send theirs twice in a row
            if run.signal == first:
                run.signal_at -= seconds
                os.kill(os.getpid(), last)
        finally:
            os._exit(0)  # not reached
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == last


# ---------------------------------------------------------------------------------------------------------------- faults
def test_a_checkpoint_that_is_torn_flipped_or_empty_gives_way_to_the_one_before_and_none_left_is_an_error(small_run, tmp_path):
    source = small_run("dqn", "short", **SHORT["dqn"], prune_type="none") / "prune_point.pt"
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint_previous.pt"
    good = source.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    assert load_checkpoint(path) is None
    for broken in (good[: len(good) // 2], bytes(flipped), b"", b"no archive"):
        path.write_bytes(broken), previous.write_bytes(good)
        assert load_checkpoint(path)["global_step"] == SHORT["dqn"]["total_timesteps"] // 2
        previous.write_bytes(broken)
        with pytest.raises(OSError, match="no readable checkpoint is left"):
            load_checkpoint(path)
        assert path.read_bytes() == broken  # nothing is deleted


def test_a_checkpoint_of_another_version_of_the_format_is_refused_by_its_number(small_run, tmp_path, capsys):
    file = Path(shutil.copy(small_run("dqn", "short", **SHORT["dqn"], prune_type="none") / "prune_point.pt", tmp_path))
    changed(file, format=2)
    with pytest.raises(OSError, match=r"prune_point.pt is needed for forks: train its dense run again, under another name"):
        load_checkpoint(file)
    assert "format 2, not 5" in capsys.readouterr().err


@pytest.fixture
def paused(tmp_path, main) -> Path:
    """The folder of a short dense PPO at its cut."""
    assert main("ppo", short("ppo", tmp_path / "a", prune_type="none", until_cut=True)) == 0
    return tmp_path / "a"


@pytest.mark.parametrize("left", [None, b"torn"])
def test_a_dense_run_that_goes_on_at_its_cut_from_the_checkpoint_before_keeps_a_whole_prune_point(
    small_run, paused, main, left
):
    (paused / "checkpoint.pt").rename(paused / "checkpoint_previous.pt")  # as a kill between two renames leaves it
    (paused / "prune_point.pt").unlink()
    if left:
        (paused / "checkpoint.pt").write_bytes(left)
    assert main("ppo", short("ppo", paused, prune_type="none")) == 0
    assert load_checkpoint(paused / "prune_point.pt")["global_step"] == 80
    assert bits(paused) == bits(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"))


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_when_there_is_room(small_run, paused, main, capsys):
    last, limits = (paused / "checkpoint.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(last) // 2, limits[1]))  # bytes per file
        assert main("ppo", short("ppo", paused, prune_type="none", checkpoint_minutes=1e-9)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 27] File too large"
    assert (paused / "checkpoint.pt").read_bytes() == last and not list(paused.glob("*.part"))
    assert main("ppo", short("ppo", paused, prune_type="none")) == 0
    assert f"{paused}: resumed at step 80 of 160" in capsys.readouterr().out
    assert bits(paused) == bits(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"))


@contextmanager
def read_only(folder: Path):
    """No file can be made, removed or renamed in it; root may do that wherever no immutable flag forbids it."""
    root = os.geteuid() == 0
    if root and subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode != 0:
        pytest.skip("root on a file system without immutable folders")
    mode = folder.stat().st_mode
    if not root:
        folder.chmod(0o555)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True) if root else folder.chmod(mode)


def test_a_run_folder_that_becomes_read_only_ends_the_run_in_one_line_and_it_goes_on_once_it_can_be_written(
    small_run, paused, monkeypatch, main, capsys
):
    log_cut, options = Run.log_cut, short("ppo", paused, prune_type="none")
    with ExitStack() as stack, monkeypatch.context() as patch:
        lock = lambda run, *args: stack.enter_context(read_only(run.folder)) or log_cut(run, *args)  # noqa: E731
        patch.setattr(Run, "log_cut", lock)
        assert main("ppo", options | {"checkpoint_minutes": 1e-9}) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "checkpoint.pt" in error
        assert main("ppo", options) == 2
        assert "--runs-dir must be a folder that can be written" in capsys.readouterr().err
    assert main("ppo", options) == 0
    assert bits(paused) == bits(small_run("ppo", "short", **SHORT["ppo"], prune_type="none"))


def test_output_that_cannot_be_written_ends_no_training_and_changes_none(small_run, tmp_path):
    shells = {
        "stderr-closed": 'exec "$@" >/dev/full 2>&-',
        "stdout-closed": 'exec "$@" 2>/dev/full >&-',
        "all-closed": 'exec "$@" <&- >&- 2>&-',
        "dead-pipe": '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}',
    }
    whole = bits(small_run("ppo", "short", **SHORT["ppo"], prune_rate=0.5))
    running = {
        name: subprocess.Popen(["bash", "-c", shell, "bash", *command("ppo", tmp_path / name, **SHORT["ppo"])])
        for name, shell in shells.items()
    }
    assert {name: process.wait() for name, process in running.items()} == dict.fromkeys(shells, 0)
    assert all(bits(tmp_path / name) == whole for name in shells)


# -------------------------------------------------------- forks that are stopped, other masks, when a checkpoint is due
def test_an_a_a_fork_that_is_stopped_goes_on_to_the_same_bits(small_run, tmp_path, monkeypatch):
    fork = {"prune_type": "none", "fork_from": str(small_run("ppo", **SHORT["ppo"], prune_type="none")), "fork_seed": 1}
    whole, due = small_run("ppo", "whole", **SHORT["ppo"], **fork), Run.checkpoint_if_due

    def stop(run: Run, global_step: int) -> None:
        run.signal = signal.SIGTERM if global_step == 112 else None
        due(run, global_step)

    args = SCRIPTS["ppo"].Args(**SHORT["ppo"], **fork, runs_dir=str(tmp_path), run_name="a")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "checkpoint_if_due", stop)
        SCRIPTS["ppo"].train(args)
    assert same_bits(SCRIPTS["ppo"].train(args), whole)


def test_random_forks_with_other_fork_seeds_have_other_masks(small_run, tmp_path, monkeypatch):
    script, masks = SCRIPTS["ppo"], []
    dense, make = small_run("ppo", **SHORT["ppo"], prune_type="none"), script.make_masks
    monkeypatch.setattr(script, "make_masks", lambda *args: masks.append(make(*args)) or masks[-1])
    for seed in (None, 1, 2):
        fork = {"prune_type": "random", "fork_from": str(dense), "fork_seed": seed}
        script.train(script.Args(**SHORT["ppo"], **fork, runs_dir=str(tmp_path)))
    pairs = itertools.combinations([mask["fc1.weight"] for mask in masks], 2)
    assert len(masks) == 3 and not any(torch.equal(one, other) for one, other in pairs)


def test_a_checkpoint_is_due_every_checkpoint_minutes(tmp_path, monkeypatch):
    now, steps, due, save = [0.0], [], Run.checkpoint_if_due, Run.save

    def four_minutes_later(run: Run, global_step: int) -> None:
        now[0] += 240.0
        due(run, global_step)

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("prune_utils.run.time", clock)
    monkeypatch.setattr(Run, "checkpoint_if_due", four_minutes_later)
    monkeypatch.setattr(Run, "save", lambda run, global_step: steps.append(global_step) or save(run, global_step))
    SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**SHORT["ppo"], runs_dir=str(tmp_path), checkpoint_minutes=10.0))
    assert steps == [32, 80, 128]  # after 12, 24 and 36 minutes, of 4 per rollout of 16 steps


# -------------------------------------------------------------------------------------------------------------- emulator
@pytest.mark.parametrize("env_id", ["SpaceInvadersNoFrameskip-v4", "ALE/SpaceInvaders-v5"])
def test_the_emulator_comes_back_to_where_it_was_and_goes_on_alike(env_id):
    games, rng = AtariGames(env_id, 3, seed=5, num_threads=1), np.random.default_rng(0)

    def play(games, rng, steps):
        seen = []
        for _ in range(steps):
            games.send(rng.integers(0, games.num_actions, 3))
            step = games.receive()
            seen.append((step.obs.tobytes(), step.rewards.tolist(), step.terminations.tolist(), step.finished))
        return seen

    play(games, rng, 900)
    assert games.resets.min() >= 1
    kept, state = games.state_dict(), rng.bit_generator.state
    expected = play(games, rng, 700)
    again, rng = AtariGames(env_id, 3, seed=9, num_threads=1), np.random.default_rng()
    again.load_state_dict(kept)
    rng.bit_generator.state = state
    assert play(again, rng, 700) == expected and sum(len(step[3]) for step in expected) >= 3


def test_an_emulator_that_shows_other_frames_than_it_did_is_refused():
    games = AtariGames("PongNoFrameskip-v4", 2, seed=5, num_threads=1)
    for action in [0, 2, 3] * 10:
        games.send(np.full(2, action))
        games.receive()
    state = games.state_dict()
    AtariGames("PongNoFrameskip-v4", 2, seed=0).load_state_dict(state)
    other = {"obs_sha256": "0" * 64}, {"frame_numbers": [state["frame_numbers"][0], state["frame_numbers"][1] + 4]}
    action = {"histories": [state["histories"][0], "05" + state["histories"][1][2:]]}  # as many frames, and others
    for change in (*other, action):
        with pytest.raises(
            OSError, match="the emulator did not return to the state of the checkpoint; --overwrite starts anew"
        ):
            AtariGames("PongNoFrameskip-v4", 2, seed=0).load_state_dict(state | change)


def test_an_emulator_comes_back_after_many_games():
    make = partial(AtariGames, "SpaceInvadersNoFrameskip-v4", 3, num_threads=1, max_frames=200)
    games, rng = make(seed=5), np.random.default_rng(0)

    def play(games: AtariGames, rng: np.random.Generator, steps: int) -> list:
        seen = []
        for _ in range(steps):
            games.send(rng.integers(0, 6, 3))
            step = games.receive()
            seen.append((step.obs.tobytes(), step.finished))
        return seen

    play(games, rng, 420)
    assert games.resets.min() >= 8
    state, draws = games.state_dict(), copy.deepcopy(rng)
    expected, again = play(games, rng, 120), make(seed=9)
    again.load_state_dict(state)
    assert play(again, draws, 120) == expected
