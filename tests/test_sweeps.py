"""Sweeps: the promised matrix, each run once, through kills and failures, to the bits of runs that were made alone."""

import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro
import yaml

from tests.conftest import SCRIPTS, SMALL, flags, summary
from tests.test_resume import same_bits

ROOT = Path(__file__).resolve().parents[1]
STUDY = {"dqn": ["0.05", "0.1", "0.3", "0.5", "0.8"], "ppo": ["0.1", "0.3", "0.5"]}
both = pytest.mark.parametrize("algorithm", SCRIPTS)


def sweep(algorithm: str, *options: str, **environment: str) -> tuple[list[str], dict]:
    """Words and environment of a sweep."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHON": sys.executable} | environment
    return ["bash", str(ROOT / "scripts" / f"sweep_{algorithm}.sh"), *options], environment


def run(algorithm: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    words, environment = sweep(algorithm, *options, **environment)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


@both
def test_a_dry_run_prints_the_study_s_commands_dense_twins_first_and_every_one_parses(algorithm, tmp_path):
    matrix = {
        "DRY_RUN": "1",
        "SEEDS": "1 2",
        "GAMES": "ALE/Pong-v5 BreakoutNoFrameskip-v4",
        "AA": "1",
        "RUNS_DIR": str(tmp_path),
    }
    printed = run(algorithm, "--total-timesteps", "100000", "--track", **matrix)
    assert printed.returncode == 0, printed.stderr
    commands = [shlex.split(line) for line in printed.stdout.splitlines()]
    assert all(words[1] == f"{algorithm}_atari_prune.py" for words in commands)
    arms = [tyro.cli(SCRIPTS[algorithm].Args, args=words[2:]) for words in commands]
    assert all(args.total_timesteps == 100_000 and args.track and args.num_threads >= 1 for args in arms)
    one = {(kind, rate) for kind in ("l1", "random") for rate in STUDY[algorithm]}
    assert len(arms) == 2 * 2 * (1 + len(one) + 1) == len({args.run_name for args in arms})
    begun = {}
    for args in arms:
        assert args.run_name == SCRIPTS[algorithm].default_run_name(args)
        begun[str(tmp_path / args.run_name)] = args
        if args.fork_from:
            twin = begun[args.fork_from]
            assert (twin.prune_type, twin.seed, twin.env_id) == ("none", args.seed, args.env_id)
    for seed in (1, 2):
        for game in matrix["GAMES"].split():
            mine = [args for args in arms if (args.seed, args.env_id) == (seed, game)]
            assert {(args.prune_type, f"{args.prune_rate:g}") for args in mine if args.prune_type != "none"} == one
            assert [args.fork_seed for args in mine[:2]] == [None, 1]  # a sweep that is cut short has its control
            assert all(args.prune_type != "none" for args in mine[2:])
    dense, arms = 4, 4 * (2 * len(STUDY[algorithm]) + 1)
    assert f"{dense + arms} runs of" in printed.stderr and f"{arms} of them forked" in printed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prune-rate", "0.3"], "--prune-rate can't be an option of every run: it is set by RATES"),
        (["--seed=3"], "--seed=3 can't be an option of every run: it is set by SEEDS"),
        (["--gamma", "2"], "--gamma must lie in [0, 1], got 2.0"),
        (["--gama", "0.9"], "--gama"),
        (["RATES=0.5 1.5"], "--prune-rate must lie in [0, 1), got 1.5"),
        (["SEEDS=one"], "--seed"),
        (["GAMES=CartPole-v1"], "--env-id must be an Atari game, got CartPole-v1"),
        (["RATES=0.50 0.5"], "error: RATES must be written in short and once, as 0.5, got 0.50 0.5"),
        (["SEEDS= "], "error: SEEDS must be written in short and once, as at least one word, got"),
        (["--overwrite"], "--overwrite can't be an option of every run: arms would fork from a run that is started anew"),
        (["JOBS=many"], "error: JOBS must be a whole number, got many"),
    ],
)
def test_what_no_run_would_take_is_refused_before_any_run(options, says, tmp_path):
    words = [word for word in options if not word[0].isupper()]
    matrix = dict(word.split("=", 1) for word in options if word not in words)
    refused = run("ppo", *words, RUNS_DIR=str(tmp_path), **matrix)
    assert refused.returncode == 2 and says in " ".join(refused.stderr.split()) and not list(tmp_path.iterdir())


def test_the_plan_of_a_sweep_that_is_gone_ends_without_a_word():
    unread, written = os.pipe()
    os.close(unread)
    environment = os.environ | {"SEEDS": "1", "RATES": "0.5", "GAMES": "PongNoFrameskip-v4"}
    words = [sys.executable, str(ROOT / "scripts" / "plan.py"), "ppo"]
    ended = subprocess.run(words, env=environment, stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert ended.returncode == -signal.SIGPIPE and ended.stderr.count("\n") == 1  # what the sweep costs


def test_the_hours_are_those_of_the_runs_that_are_there_and_a_broken_one_counts_for_nothing(tmp_path):
    for arm, text in (("none", '{"time": {"agent_steps_per_second_while_learning": 100.0}}'), ("l1-0.5", "{")):
        folder = tmp_path / f"SpaceInvadersNoFrameskip-v4__ppo_atari_prune__{arm}__s1"
        folder.mkdir()
        (folder / "summary.json").write_text(text)
    # 1 dense run of 359,424 steps, 2 arms of 179,200: 717,824, / 100 / 2 side by side / 3600 = 1.0 hours
    options = {"RUNS_DIR": str(tmp_path), "RATES": "0.5", "JOBS": "2", "DRY_RUN": "1"}
    printed = run("ppo", "--total-timesteps", "360000", **options)
    assert f"about 1.0 hours at the speed of 1 finished runs in {tmp_path};" in printed.stderr


def test_finished_arms_need_no_prune_point_and_others_do_not_wait_for_one_that_never_comes(tmp_path):
    options, environment = flags(SMALL["dqn"] | {"eval_episodes": 0}), {"RATES": "0.5", "RUNS_DIR": str(tmp_path), "JOBS": "2"}
    assert run("dqn", *options, **environment).returncode == 0
    dense, l1, random_ = (next(tmp_path.glob(f"*__{arm}__*/summary.json")).parent for arm in ("none", "l1-0.5", "random-0.5"))
    assert summary(l1)["agent_steps_run"] == summary(random_)["agent_steps_run"] == SMALL["dqn"]["total_timesteps"] // 2
    (dense / "prune_point.pt").unlink(), (l1 / "summary.json").unlink()
    again = run("dqn", *options, **environment)
    assert again.returncode == 1 and f"failed {l1.name} (delete {dense}, which is finished" in again.stdout
    assert f"finished {random_.name}" in again.stdout and (random_ / "summary.json").exists()


@both
def test_a_sweep_killed_again_and_again_finishes_every_run_once_with_the_bits_of_runs_made_alone(
    small_run, algorithm, tmp_path
):
    options = [*flags(SMALL[algorithm]), "--checkpoint-minutes=0.005"]
    words, environment = sweep(algorithm, *options, RATES="0.5", RUNS_DIR=str(tmp_path))
    rng, environment = random.Random(3), environment | {"JOBS": "2"}
    gone_on = lambda: sum(log.read_text().count("goes on at step") for log in tmp_path.glob("*.log"))  # noqa: E731
    for sign, number in (
        ("*none*/checkpoint.pt", signal.SIGKILL),  # the dense run is on its way
        ("*-0.5*/checkpoint.pt", signal.SIGKILL),  # so is an arm
        ("*/summary.json", signal.SIGTERM),  # a run is finished, and another goes on
    ):
        before, process = gone_on(), subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        while not (list(tmp_path.glob(sign)) and (number == signal.SIGKILL or gone_on() > before)):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5 * rng.random())
        if number == signal.SIGKILL:  # the driver, xargs and the runs
            subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=True)
        process.send_signal(number)
        assert process.wait() == (143 if number == signal.SIGTERM else -9)
    assert any("by SIGTERM" in log.read_text() for log in tmp_path.glob("*.log"))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "  3 of 3 done, 0 running, 0 failed, 0.0 hours left" in done.stdout, (
        done.stdout + done.stderr
    )
    folders = {summary(folder)["arm"]: folder for folder in tmp_path.iterdir() if folder.is_dir()}
    assert folders.keys() == {"none", "l1-0.5", "random-0.5"}
    for prune_type in ("none", "l1", "random"):
        alone = small_run(algorithm, prune_type=prune_type, **({} if prune_type == "none" else {"prune_rate": 0.5}))
        assert same_bits(folders[summary(alone)["arm"]], alone)
    forked = [summary(folder)["agent_steps_run"] for arm, folder in folders.items() if arm != "none"]
    assert forked == [SMALL[algorithm]["total_timesteps"] // 2] * 2
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*")}
    assert subprocess.run(words, env=environment, capture_output=True).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*") if file.name != ".lock"}.items() <= written.items()


def test_a_run_that_fails_is_named_the_others_finish_and_the_same_command_runs_only_that_one_again(tmp_path):
    options, environment = flags(SMALL["ppo"] | {"eval_episodes": 0}), {"RATES": "0.5", "RUNS_DIR": str(tmp_path), "JOBS": "2"}
    dry = run("ppo", *options, **environment, DRY_RUN="1").stdout
    name = next(word for word in shlex.split(dry) if "l1-0.5" in word)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    done = run("ppo", *options, **environment)
    assert done.returncode == 1 and f"failed {name} (exit 2, see {tmp_path / name}.log)" in done.stdout
    assert "error: 1 runs failed" in done.stderr and done.stdout.count("finished ") == 2
    (tmp_path / name / "thesis.tex").unlink()
    again = run("ppo", *options, **environment)
    assert again.returncode == 0 and again.stdout.count("finished ") == 3
    logs = {log.name.removesuffix(".log"): log.read_text() for log in tmp_path.glob("*.log")}
    assert {name for name, text in logs.items() if "is finished; --overwrite starts anew" not in text} == {name}


def test_arms_of_a_dense_run_that_was_stopped_alone_do_not_wait_for_it_and_the_same_command_goes_on(tmp_path):
    options, matrix = flags(SMALL["ppo"] | {"eval_episodes": 0}), {"RATES": "0.5", "RUNS_DIR": str(tmp_path), "JOBS": "2"}
    words, environment = sweep("ppo", *options, **matrix)
    driver = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    dense = ["pkill", "-TERM", "-f", f"^[^ ]*python[^ ]* ppo_atari_prune.py .* --runs-dir {tmp_path} "]
    while subprocess.run(dense).returncode:
        assert driver.poll() is None
        time.sleep(0.1)
    printed, errors = driver.communicate(timeout=60)
    assert driver.returncode == 143 and "stopped: 3 runs are not finished" in errors, printed + errors
    assert printed.count("(no prune point of its twin)") == 2
    done = run("ppo", *options, **matrix)
    assert done.returncode == 0 and done.stdout.count("finished ") == 3, done.stdout + done.stderr


def test_the_file_for_wandb_agents_holds_the_ppo_matrix_in_words_that_the_script_takes():
    config = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    grid = {name: parameter["values"] for name, parameter in config["parameters"].items()}
    assert [f"{rate:g}" for rate in grid["prune_rate"]] == STUDY["ppo"] and grid["prune_type"] == ["none", "l1", "random"]
    for values in itertools.product(*grid.values()):  # an agent writes --prune_rate=0.1
        words = ["--track", *(f"--{name}={value}" for name, value in zip(grid, values, strict=True))]
        args = tyro.cli(SCRIPTS["ppo"].Args, args=words)
        assert (args.seed, args.prune_type, args.prune_rate) == values
    assert config["program"] == "ppo_atari_prune.py" and config["command"][-2:] == ["--track", "${args}"]
