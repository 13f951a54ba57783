"""A run goes on, and forks, to the same bits as one that was never interrupted; a broken checkpoint is never used."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqn_atari_prune import AtariGames, load_checkpoint, wandb_records
from evals import storage
from scripts.kill_runs import bits, disturb
from tests.conftest import SCRIPTS, SMALL, flags, rows, summary

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


def run(words: list[str], **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, **kwargs)


@both
@pytest.mark.parametrize("prune_type, precision", [("l1", "fp32"), ("random", "bf16")])
def test_a_fork_ends_in_the_same_bits_as_a_run_from_scratch_and_trains_half_the_steps(
    small_run, algorithm, prune_type, precision
):
    scratch = small_run(algorithm, prune_type=prune_type, prune_rate=0.5, precision=precision)
    dense = small_run(algorithm, prune_type="none", precision=precision)
    fork = small_run(algorithm, name="fork", prune_type=prune_type, prune_rate=0.5, precision=precision, fork_from=str(dense))
    assert same_bits(fork, scratch)
    half = SMALL[algorithm]["total_timesteps"] // 2
    assert summary(scratch)["agent_steps_run"] == 2 * half and summary(fork)["agent_steps_run"] == half
    assert json.loads((fork / "config.json").read_text())["parent"] == str(dense)
    assert (dense / "prune_point.pt").is_file() and [path.name for path in fork.glob("*.pt")] == ["model.pt"]


def test_a_dqn_that_goes_on_between_two_updates_logs_the_losses_of_the_one_before(small_run):
    at = 998 / SMALL["dqn"]["total_timesteps"]  # updates at 992 and 1008, a log at 1000
    options = {"train_frequency": 16, "prune_at": at}
    scratch = small_run("dqn", prune_type="l1", prune_rate=0.5, **options)
    dense = small_run("dqn", prune_type="none", **options)
    fork = small_run("dqn", name="fork", prune_type="l1", prune_rate=0.5, fork_from=str(dense), **options)
    logged = [row["global_step"] for row in rows(fork / "curves.csv") if row["tag"] == "losses/td_loss"]
    assert same_bits(fork, scratch) and logged == ["1000", "2000"]


@both
def test_a_a_arms_differ_by_their_fork_seed_alone_whatever_their_parent_does_meanwhile_and_another_machine_is_named(
    small_run, algorithm, tmp_path, capsys
):
    dense, elsewhere = small_run(algorithm, prune_type="none"), tmp_path / "dense"
    shutil.copytree(dense, elsewhere)
    config = json.loads((dense / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | {"device_name": "an abacus"}))
    (elsewhere / "curves.csv").write_text("global_step,tag,value\n")  # as if it had just gone on from an early checkpoint
    forks = [
        small_run(algorithm, name=name, prune_type="none", fork_from=str(parent), fork_seed=seed)
        for name, parent, seed in (("one", dense, 1), ("other", dense, 2), ("same", elsewhere, 1))
    ]
    assert same_bits(forks[0], forks[2]) and bits(forks[0])["model.pt"] != bits(forks[1])["model.pt"]
    assert capsys.readouterr().err.count("its checkpoint was made on an abacus, this is ") == 1
    before = [row for row in rows(dense / "curves.csv") if int(row["global_step"]) < SMALL[algorithm]["total_timesteps"] // 2]
    assert rows(forks[1] / "curves.csv")[: len(before)] == before and summary(forks[1])["arm"] == "none-fork2"


def test_a_dense_run_that_starts_again_never_takes_its_prune_point_away_from_forks(small_run, tmp_path, monkeypatch):
    folder = shutil.copytree(small_run("ppo", prune_type="none"), tmp_path / "a")
    (folder / "summary.json").unlink()  # as if it had been killed after its cut and before its first checkpoint
    point, there, replace = folder / "prune_point.pt", [], os.replace
    first = point.stat().st_ino

    def replace_while_watched(*paths):
        there.append(point.exists())
        replace(*paths)
        there.append(point.exists())

    monkeypatch.setattr(os, "replace", replace_while_watched)
    args = SCRIPTS["ppo"].Args(**(SMALL["ppo"] | {"prune_type": "none", "runs_dir": str(tmp_path), "run_name": "a"}))
    assert SCRIPTS["ppo"].train(args) == folder and all(there) and len(there) >= 6
    assert point.stat().st_ino != first and not list(folder.glob("*_previous.pt"))


def test_a_fork_whose_parent_is_started_anew_in_the_same_moment_ends_with_a_line(small_run, tmp_path, monkeypatch, capsys):
    parent, words = shutil.copytree(small_run("ppo", prune_type="none"), tmp_path / "dense"), command("ppo", tmp_path / "fork")
    opened = SCRIPTS["ppo"].open_run

    def open_run_and_lose_the_parent(args):
        run = opened(args)
        (parent / "prune_point.pt").unlink()
        return run

    monkeypatch.setattr(SCRIPTS["ppo"], "open_run", open_run_and_lose_the_parent)
    monkeypatch.setattr(sys, "argv", [*words[1:], "--prune-type=l1", f"--fork-from={parent}"])
    with pytest.raises(SystemExit, match="1"):
        SCRIPTS["ppo"].main()
    assert capsys.readouterr().err.splitlines()[-1] == f"error: the prune point of {parent} is gone: that run was started anew"


@both
def test_a_fork_of_other_options_is_refused_and_the_difference_named(small_run, algorithm, tmp_path):
    dense = small_run(algorithm, prune_type="none")
    base = SMALL[algorithm] | {"fork_from": str(dense), "runs_dir": str(tmp_path)}
    resolved = json.loads((dense / "config.json").read_text())["resolved"]
    other = {"precision": {"fp32": "bf16", "bf16": "fp32"}[resolved["precision"]], "num_threads": 2}
    for option, value in (other | {"seed": 7, "learning_rate": 1e-3, "hidden_size": 65}).items():
        with pytest.raises(SCRIPTS[algorithm].UserError, match=rf"--fork-from must .*{option}.* -> {value}"):
            SCRIPTS[algorithm].train(SCRIPTS[algorithm].Args(**(base | {option: value})))
    with pytest.raises(SCRIPTS[algorithm].UserError, match="that has reached its cut"):
        SCRIPTS[algorithm].train(SCRIPTS[algorithm].Args(**(base | {"fork_from": str(tmp_path)})))
    assert not list(tmp_path.iterdir())


def test_a_fork_by_a_script_that_has_changed_since_is_refused_by_name(small_run, tmp_path):
    dense = small_run("ppo", prune_type="none")
    config = json.loads((dense / "config.json").read_text())
    config["resolved"]["source_sha256"] = "another script"
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(dense / "prune_point.pt", tmp_path)
    fork = {"prune_type": "l1", "run_name": "fork", "fork_from": str(tmp_path)}
    with pytest.raises(SCRIPTS["ppo"].UserError, match=r"--fork-from must .*source_sha256 another script -> "):
        SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**(config["options"] | fork)))
    assert not (dense.parent / "fork").exists()


@both
@pytest.mark.parametrize("number, precision", [(signal.SIGTERM, "fp32"), (signal.SIGKILL, "bf16")])
def test_a_run_stopped_again_and_again_ends_in_the_same_bits_with_no_gap_and_no_doubled_point(
    small_run, algorithm, number, precision, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, kills = tmp_path / "a", 3 if number == signal.SIGKILL else 1
    words = [*command(algorithm, folder, checkpoint_minutes=0.003, precision=precision), "--track"]
    lives = disturb(words, folder, kills, patience=1.0, rng=random.Random(5), number=number)
    assert len(lives) == kills + 1 and lives[-1][0] > 0 and lives[0][0] == 0
    assert same_bits(folder, small_run(algorithm, prune_type="l1", prune_rate=0.5, precision=precision))
    assert "finished" in run(words).stdout and not list(folder.glob("checkpoint*"))
    curves = sorted((r["tag"], int(r["global_step"]), float(r["value"])) for r in rows(folder / "curves.csv"))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "charts/SPS"]
    shown = sorted((tag, e.step, e.value) for tag in tags for e in events.Scalars(tag))
    assert shown == [(tag, step, float(np.float32(value))) for tag, step, value in curves]
    sent = [record["history"]["item"] for record in wandb_records(folder) if record["type"] == "history"]
    told = [(tag, row["global_step"], v) for row in sent for tag, v in row.items() if "/" in tag and tag != "charts/SPS"]
    assert sorted(told) == curves
    assert len({record["run"]["run_id"] for record in wandb_records(folder) if record["type"] == "run"}) == 1


@both
def test_a_run_stopped_in_an_evaluation_says_so_at_once_and_goes_on(small_run, algorithm, tmp_path, monkeypatch, capsys):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("went on")

    monkeypatch.setattr(sys, "argv", command(algorithm, tmp_path / "a")[1:])
    with monkeypatch.context() as patch:
        patch.setattr(f"evals.{algorithm}_eval.evaluate", stop)
        with pytest.raises(SystemExit, match="143"):
            SCRIPTS[algorithm].main()
    line = "stopped by SIGTERM; the same command goes on from the last checkpoint, if there is one"
    assert capsys.readouterr().err.splitlines()[-1] == line and not (tmp_path / "a" / "summary.json").exists()
    handler = signal.getsignal(signal.SIGTERM)
    SCRIPTS[algorithm].main()
    assert same_bits(tmp_path / "a", small_run(algorithm, prune_type="l1", prune_rate=0.5))
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_run_that_gets_a_signal_while_it_is_saved_is_finished(small_run, tmp_path, monkeypatch):
    signals, pack = [], storage.pack
    monkeypatch.setattr(sys, "argv", command("ppo", tmp_path / "a")[1:])
    monkeypatch.setattr(storage, "pack", lambda weights: signals.append(os.kill(os.getpid(), signal.SIGTERM)) or pack(weights))
    SCRIPTS["ppo"].main()
    monkeypatch.undo()
    assert signals and same_bits(tmp_path / "a", small_run("ppo", prune_type="l1", prune_rate=0.5))


def test_a_signal_while_the_checkpoint_is_read_ends_the_run_and_leaves_the_checkpoint_as_it_was(
    small_run, tmp_path, monkeypatch, capsys
):
    folder = shutil.copytree(small_run("ppo", prune_type="none"), tmp_path / "a")
    (folder / "summary.json").unlink(), (folder / "prune_point.pt").rename(folder / "checkpoint.pt")
    before = (folder / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(SCRIPTS["ppo"].AtariGames, "load_state_dict", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    args = SCRIPTS["ppo"].Args(**(SMALL["ppo"] | {"prune_type": "none", "runs_dir": str(tmp_path), "run_name": "a"}))
    with pytest.raises(SCRIPTS["ppo"].Stop):
        SCRIPTS["ppo"].train(args)
    assert "stopped by SIGTERM; the same command goes on" in capsys.readouterr().err
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_that_is_torn_flipped_or_empty_gives_way_to_the_one_before_and_none_left_is_an_error(small_run, tmp_path):
    source = small_run("dqn", prune_type="none") / "prune_point.pt"
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint_previous.pt"
    good = source.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    assert load_checkpoint(path) is None
    for broken in (good[: len(good) // 2], bytes(flipped), b"", b"no archive"):
        path.write_bytes(broken), previous.write_bytes(good)
        assert load_checkpoint(path)["global_step"] == SMALL["dqn"]["total_timesteps"] // 2
        previous.write_bytes(broken)
        with pytest.raises(OSError, match="no good checkpoint is left"):
            load_checkpoint(path)
        assert path.read_bytes() == broken  # nothing is deleted
    shutil.copyfile(small_run("ppo", prune_type="none") / "prune_point.pt", path)
    previous.unlink()
    with pytest.raises(OSError, match="no good checkpoint is left"):  # of the other algorithm
        load_checkpoint(path)


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_when_there_is_room(small_run, tmp_path):
    folder, words = tmp_path / "a", command("ppo", tmp_path / "a", checkpoint_minutes=0.001)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        process.terminate()
    last = (folder / "checkpoint.pt").read_bytes()
    limited = run(["bash", "-c", 'ulimit -f 2500; exec "$@"', "bash", *words])  # 2.5 MB a file; a checkpoint takes 3
    assert limited.returncode == 1 and "File too large" in limited.stderr and "Traceback" not in limited.stderr
    assert (folder / "checkpoint.pt").read_bytes() == last and not list(folder.glob("*.part"))
    again = run(words)
    assert again.returncode == 0 and f"{folder} goes on at step" in again.stdout
    assert same_bits(folder, small_run("ppo", prune_type="l1", prune_rate=0.5))


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


def test_a_checkpoint_of_another_game_is_refused_by_name():
    kept = AtariGames("PongNoFrameskip-v4", 1, seed=0).state_dict()
    with pytest.raises(OSError, match="the checkpoint is of PongNoFrameskip-v4, not of BreakoutNoFrameskip-v4"):
        AtariGames("BreakoutNoFrameskip-v4", 1, seed=0).load_state_dict(kept)


def test_a_checkpoint_of_another_version_of_the_format_is_refused_by_its_number(small_run, tmp_path, capsys):
    kept = torch.load(small_run("dqn", prune_type="none") / "prune_point.pt", weights_only=True)
    torch.save(kept | {"format": 0}, tmp_path / "checkpoint.pt")
    with pytest.raises(OSError, match="no good checkpoint is left"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert "of dqn, format 0; not dqn, 2" in capsys.readouterr().err


@contextmanager
def read_only(folder: Path):
    """No file can be made, removed or renamed in it; root may do that wherever no immutable flag forbids it."""
    root = os.geteuid() == 0
    if root and run(["chattr", "+i", str(folder)]).returncode != 0:
        pytest.skip("root on a file system without immutable folders")
    mode = folder.stat().st_mode
    if not root:
        folder.chmod(0o555)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True) if root else folder.chmod(mode)


def test_a_run_folder_that_becomes_read_only_ends_the_run_in_one_line_and_it_goes_on_once_it_can_be_written(
    small_run, tmp_path
):
    folder, words = tmp_path / "a", command("ppo", tmp_path / "a", checkpoint_minutes=0.001)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        with read_only(folder):
            errors = process.communicate()[1]
            assert process.returncode == 1 and "checkpoint.pt" in errors and "Traceback" not in errors
            again = run(words)
            assert again.returncode == 2 and "--runs-dir must be a folder that can be written" in again.stderr
    assert run(words).returncode == 0 and same_bits(folder, small_run("ppo", prune_type="l1", prune_rate=0.5))
