"""Sweeps: the promised matrix, each run once, through kills and failures, to the bits of runs that were made alone."""

import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro
import yaml

from checks import plan_sweep
from prune_utils.basics import UserError, parse_options
from prune_utils.run import CRITERIA, default_run_name
from scripts import wandb_dashboard
from tests.conftest import SCRIPTS, SMALL, flags, summary
from tests.test_resume import same_bits

ROOT = Path(__file__).resolve().parents[1]
STUDY = {"dqn": ["0.05", "0.1", "0.3", "0.5", "0.8"], "ppo": ["0.1", "0.3", "0.5"]}
VARIABLES = ("OMP_NUM_THREADS", "SEEDS", "RATES", "TYPES", "GAMES", "AA", "FORKS", "GRADUAL", "JOBS", "RUNS_DIR", "DRY_RUN")
both = pytest.mark.parametrize("algorithm", SCRIPTS)


@pytest.fixture(autouse=True)
def no_orphans(tmp_path):
    """A sweep goes on without a test that failed."""
    yield
    subprocess.run(["pkill", "-9", "-f", "--", f"--runs-dir {tmp_path} "])


def sweep(algorithm: str, *options: str, **environment: str) -> tuple[list[str], dict]:
    """Words and environment of a sweep."""
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | {"PYTHON": sys.executable} | environment
    return ["bash", str(ROOT / "scripts" / f"sweep_{algorithm}.sh"), *options], environment


def run(algorithm: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    words, environment = sweep(algorithm, *options, **environment)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)


def plan(algorithm: str, *options: str, **environment: str) -> None:
    """Run plan_sweep in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        plan_sweep.plan(algorithm, list(options))


def runs_of(algorithm: str, printed: str) -> list:
    """The options of each command that a dry run prints."""
    commands = [shlex.split(line) for line in printed.splitlines()]
    assert all(words[:2] == [sys.executable, f"{algorithm}_atari_prune.py"] for words in commands)
    return [parse_options(SCRIPTS[algorithm].Args, "", words[2:]) for words in commands]


def process_of(name: str, deadline: float = 60) -> int:
    """The process id of the training of this name."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found = subprocess.run(["pgrep", "-f", f"^[^ ]*python[^ ]* .*_atari_prune.py .*{name}"], capture_output=True, text=True)
        if found.stdout:
            return int(found.stdout.split()[0])
        time.sleep(0.05)
    raise AssertionError(f"{name} was never started")


def stubs(tmp_path: Path, *lines: str, faults: str = "") -> dict[str, str]:
    """The environment of a sweep of two runs at a time whose plan is these lines, NAME DENSE_NAME [--until-cut].

    A run leaves a prune_point.pt and, if it is not to stop at its cut, a summary.json. `faults` come first.
    """
    train, plan, commands = tmp_path / "train", tmp_path / "python", ["2 -"]
    for line in lines:
        name, dense, *to_cut = line.split()
        commands.append(" ".join([name, dense, str(train), name, *to_cut]))
    files = 'mkdir -p "$RUNS_DIR/$1"\n[[ -e $RUNS_DIR/$1/summary.json ]] || touch "$RUNS_DIR/$1/prune_point.pt"\n'
    finish = '[[ ${2:-} == --until-cut ]] || touch "$RUNS_DIR/$1/summary.json"\n'
    train.write_text(f"#!/usr/bin/env bash\n{faults}\n{files}{finish}")
    plan.write_text("#!/usr/bin/env bash\n" + "".join(f"echo '{command}'\n" for command in commands))
    for path in (train, plan):
        path.chmod(0o755)
    return {"PYTHON": str(plan), "RUNS_DIR": str(tmp_path / "runs")}


# -------------------------------------------------------------------------------------------------------------- the list
@both
def test_a_dry_run_prints_the_study_s_commands_in_two_phases_dense_runs_first_and_every_one_parses(algorithm, tmp_path):
    games, seeds = ["ALE/Pong-v5", "BreakoutNoFrameskip-v4"], [1, 2]
    matrix = {"DRY_RUN": "1", "SEEDS": "1 2", "GAMES": " ".join(games), "AA": "1", "RUNS_DIR": str(tmp_path)}
    printed = run(algorithm, "--total-timesteps", "100000", "--track", **matrix)
    assert printed.returncode == 0, printed.stderr
    parsed = runs_of(algorithm, printed.stdout)
    assert all(args.total_timesteps == 100_000 and args.track and args.num_threads >= 1 for args in parsed)
    to_cut, to_end = parsed[:4], parsed[4:]
    assert all(args.until_cut for args in to_cut) and not any(args.until_cut for args in to_end)
    assert [(args.seed, args.env_id, args.prune_type) for args in to_cut] == [(s, g, "none") for s in seeds for g in games]
    one = {(kind, rate) for kind in ("l1", "random") for rate in STUDY[algorithm]}
    assert len(to_end) == 2 * 2 * (1 + len(one) + 1) == len({args.run_name for args in to_end})
    assert all(args.run_name == default_run_name(args) for args in parsed)
    at_cut = {str(tmp_path / args.run_name): args for args in to_cut}
    for args in to_end:
        if args.fork_from:
            dense = at_cut[args.fork_from]
            assert (dense.seed, dense.env_id) == (args.seed, args.env_id)
    commands = printed.stdout.splitlines()
    assert {line.removesuffix(" --until-cut") for line in commands[:4]} <= set(commands[4:])  # the second halves
    for seed, game in itertools.product(seeds, games):
        mine = [args for args in to_end if (args.seed, args.env_id) == (seed, game)]
        assert {(args.prune_type, f"{args.prune_rate:g}") for args in mine if args.prune_type != "none"} == one
        assert [args.fork_seed for args in mine[:2]] == [None, 1]  # a sweep that is cut short has its control
        assert all(args.prune_type != "none" and args.fork_seed is None for args in mine[2:])
    dense, arms = 4, 4 * (2 * len(STUDY[algorithm]) + 1)
    assert f"{dense + arms} runs of" in printed.stderr and f"{arms} of them forked" in printed.stderr
    assert not list(tmp_path.iterdir())


@both
def test_the_names_of_the_default_sweep_stay_what_they_are(algorithm, monkeypatch, capsys):
    monkeypatch.setattr(plan_sweep, "uses_cuda", lambda cuda: False)
    plan(algorithm, "--eval-episodes", "100", AA="1", RATES="0.50 0.05", SEEDS="4")
    names = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    start, end = f"SpaceInvadersNoFrameskip-v4__{algorithm}_atari_prune__", "__s4__num_threads-1__eval_episodes-100"
    arms = ["none", "none", "none-fork1", "l1-0.5", "random-0.5", "l1-0.05", "random-0.05"]
    assert names == [[f"{start}{arm}{end}", f"{start}none{end}"] for arm in arms]


def test_types_drops_a_criterion_and_forks_makes_so_many_of_every_arm_dense_included(capsys, tmp_path):
    plan("ppo", TYPES="l1", FORKS="3", RATES="0.5 0.9", AA="1", RUNS_DIR=str(tmp_path))
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines()[1:]]
    to_cut, dense, *arms = runs_of("ppo", "\n".join(lines))
    assert to_cut.until_cut and to_cut.run_name == dense.run_name and dense.fork_from is None
    made = [(args.prune_type, args.prune_rate if args.prune_type != "none" else None, args.fork_seed) for args in arms]
    every = [("none", None), ("l1", 0.5), ("l1", 0.9)]
    assert made == [(kind, rate, fork_seed) for kind, rate in every for fork_seed in (1, 2, 3)]
    assert {args.fork_from for args in arms} == {str(tmp_path / dense.run_name)}


def test_gradual_adds_an_arm_of_8_cuts_for_each_unstructured_one_and_they_fork_from_the_same_prune_point(capsys, tmp_path):
    options = {"TYPES": "l1 l1-structured", "RATES": "0.5 0.8", "GRADUAL": "1", "RUNS_DIR": str(tmp_path)}
    plan("ppo", "--prune-until", "0.7", **options)
    printed = capsys.readouterr()
    lines = [line.split(" ", 2)[2] for line in printed.out.splitlines()[1:]]
    _, dense, *arms = runs_of("ppo", "\n".join(lines))
    made = [(args.prune_type, args.prune_rate, args.prune_cuts) for args in arms]
    assert made == [(kind, r, cuts) for r in (0.5, 0.8) for kind, cuts in (("l1", 1), ("l1-structured", 1), ("l1", 8))]
    assert {args.fork_from for args in arms} == {str(tmp_path / dense.run_name)} and dense.prune_cuts == 1
    assert {args.prune_until for args in arms} == {0.7}
    assert "l1 l1-structured at 0.5 0.8; l1 in 8 cuts until 0.7 too;" in printed.err
    for words in (["--prune-cuts", "4"], ["--prune_cuts=1"]):
        with pytest.raises(UserError, match="--prune-cuts can't be an option of every run with GRADUAL=1"):
            plan("ppo", *words, **options)
    with pytest.raises(UserError, match="GRADUAL must be 0 where TYPES has no unstructured type, got TYPES=l1-structured"):
        plan("ppo", **options | {"TYPES": "l1-structured"})


def test_the_runs_do_not_depend_on_the_jobs_nor_on_the_memory_of_a_gpu_that_is_free(monkeypatch, capsys):
    """A second start beside the orphans of a killed sweep would train everything anew."""
    monkeypatch.setattr(plan_sweep, "uses_cuda", lambda cuda: cuda)
    monkeypatch.setattr(plan_sweep, "cores", lambda: 16)
    monkeypatch.setattr(plan_sweep.torch.cuda, "device_count", lambda: 2)
    jobs, lists = [], []
    for free, variables in (
        (70e9, {}),
        (3.5e9, {}),
        (0.0, {}),
        (70e9, {"JOBS": "3"}),
        (70e9, {"CUDA_VISIBLE_DEVICES": "5, 2,7"}),
    ):
        monkeypatch.setattr(plan_sweep.torch.cuda, "mem_get_info", lambda free=free: (free, 80e9))
        plan("ppo", **variables)
        first, *rest = capsys.readouterr().out.splitlines()
        jobs.append(first)
        lists.append(rest)
    assert jobs == ["16 0,1", "6 0,1", "2 0,1", "3 0,1", "16 5,2"]
    assert all(other == lists[0] for other in lists) and "__num_threads-1" in lists[0][0]  # 16 cores for 2 GPUs of 8 runs each
    plan("ppo", "--num-threads", "4")
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "4 0,1" and "__num_threads-4" in second  # 4 * 4 threads
    for count, gpus, jobs in ((2, 1, 2), (4, 4, 4), (2, 4, 4)):  # a run for each core, and for each GPU at least
        monkeypatch.setattr(plan_sweep, "cores", lambda count=count: count)
        monkeypatch.setattr(plan_sweep.torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(plan_sweep.torch.cuda, "mem_get_info", lambda: (70e9, 80e9))
        plan("ppo")
        printed = capsys.readouterr()
        assert printed.out.startswith(f"{jobs} ") and f"GB of {70 * gpus}.0 GB" in printed.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--prune-rate 0.3", "--prune-rate can't be an option of every run: it is set by RATES"),
        ("--prune_type=l1", "--prune_type=l1 can't be an option of every run: it is set by TYPES"),
        ("--seed=3", "--seed=3 can't be an option of every run: it is set by SEEDS"),
        ("--until-cut", "--until-cut can't be an option of every run: it is set by the sweep itself"),
        ("--overwrite", "--overwrite can't be an option of every run: arms would fork from a run that starts anew"),
        ("--gamma 2", "error: --gamma must lie in [0, 1], got 2.0"),
        ("--gama 0.9", "--gama"),
        ("RATES=0.5,2", "error: RATES: --prune-rate must lie in [0, 1), got 2.0"),
        ("RATES=half", "error: RATES must be numbers separated by spaces, got half"),
        ("RATES=0.50,0.5", "error: SEEDS, RATES, TYPES and GAMES must give each run once"),
        ("SEEDS=a", "error: SEEDS must be whole numbers separated by spaces, got a"),
        ("SEEDS=-1", "error: SEEDS: --seed must be at least 0, got -1"),
        ("SEEDS=,", "error: SEEDS must be whole numbers separated by spaces, got"),
        ("TYPES=foo,l1", f"error: TYPES must be words of {' '.join(CRITERIA)}, got foo"),
        ("GAMES=CartPole-v1", "error: GAMES: --env-id must be an Atari game, got CartPole-v1"),
        ("JOBS=x", "error: JOBS must be a whole number below a million, got x"),
        (f"JOBS=1{'0' * 400}", "error: JOBS must be a whole number below a million, got 10"),
        ("AA=yes", "error: AA must be 0 or 1, got yes"),
        ("DRY_RUN=2", "error: DRY_RUN must be 0 or 1, got 2"),
        ("DRY_RUN=01", "error: DRY_RUN must be 0 or 1, got 01"),
        ("FORKS=-3", "error: FORKS must be a whole number below a million, got -3"),
        ("SEED=2", "error: SEED must be written SEEDS, got SEED=2"),
        ("DRYRUN=1", "error: DRYRUN must be written DRY_RUN, got DRYRUN=1"),
    ],
)
def test_what_no_run_would_take_is_refused_in_one_line(words, says, monkeypatch, capsys):
    variables = dict([words.replace(",", " ").split("=")]) if words[0].isupper() else {}
    monkeypatch.setattr(sys, "argv", ["plan_sweep", "ppo", *([] if variables else words.split())])
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as refused:
        plan_sweep.main()
    printed = capsys.readouterr()
    assert refused.value.code == 2 and says in " ".join(printed.err.split()) and printed.out == ""
    assert printed.err.count("\n") == 1 or words == "--gama 0.9"  # tyro draws a box around that


def test_a_tracked_sweep_ends_with_the_command_for_its_dashboard_whether_or_not_runs_failed(capsys, tmp_path):
    games = ["SpaceInvadersNoFrameskip-v4", "ALE/Pong-v5"]
    plan("ppo", "--track", "--wandb-entity", "me", GAMES=" ".join(games), JOBS="1", RUNS_DIR=str(tmp_path))
    words = shlex.split(capsys.readouterr().out.splitlines()[0])[2:]
    assert words[:2] == [sys.executable, "scripts/wandb_dashboard.py"]
    assert tyro.cli(wandb_dashboard.Args, args=words[2:]) == wandb_dashboard.Args("me", "atari-prune", tuple(games))
    with pytest.raises(UserError, match="WANDB_RUN_ID must not be set for a sweep with --track"):
        plan("ppo", "--track", WANDB_RUN_ID="one")

    stub = tmp_path / "python"  # both the plan and the runs
    for code, command in ((0, " my dashboard"), (1, " my dashboard"), (0, "")):
        planned = f"1 -{command}", f"a a {stub} a --until-cut", f"a a {stub} a"
        lines = "".join(f"echo '{line}'\n" for line in planned)
        stub.write_text(f"#!/bin/sh\n[ $1 != -m ] && touch {tmp_path}/a/prune_point.pt && exit {code}\n{lines}")
        stub.chmod(0o755)
        (tmp_path / "a").mkdir(exist_ok=True)
        done = run("ppo", PYTHON=str(stub), RUNS_DIR=str(tmp_path))
        ends = done.stdout.splitlines()[-1] == "the W&B view and report of these runs: my dashboard"
        assert (done.returncode, ends) == (code, bool(command)), done.stdout + done.stderr


def test_the_threads_of_a_sweep_are_those_that_its_names_tell(tmp_path):
    printed = run("ppo", "--num-threads", "0", DRY_RUN="1", RUNS_DIR=str(tmp_path))  # 0: the sweep decides
    parsed = runs_of("ppo", printed.stdout)
    assert all(args.num_threads >= 1 and f"num_threads-{args.num_threads}" in args.run_name for args in parsed)


def test_short_help_is_help_and_a_file_is_no_folder_for_runs(tmp_path):
    assert run("ppo", "-h").stdout == run("ppo", "--help").stdout != ""
    (tmp_path / "file").touch()
    refused = run("ppo", RUNS_DIR=str(tmp_path / "file"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"error: RUNS_DIR must be a folder that can be written, got {tmp_path / 'file'}\n"


@pytest.mark.parametrize(("code", "told"), [(1, ["failed d"]), (75, ["waiting for d", "paused d at its cut"])])
def test_a_dense_run_whose_prune_point_is_there_goes_on_whether_it_failed_then_or_another_sweep_trains_it(tmp_path, code, told):
    train = tmp_path / "train"
    write = 'mkdir -p "$RUNS_DIR/$1" && touch "$RUNS_DIR/$1/prune_point.pt"'
    train.write_text(f"#!/usr/bin/env bash\n{write}\n[[ $2 != --until-cut ]] || exit {code}\n")
    stub = tmp_path / "python"
    stub.write_text(f"#!/usr/bin/env bash\nprintf '1 -\\nd d {train} d --until-cut\\nd d {train} d 2\\na d {train} a 2\\n'\n")
    for path in (train, stub):
        path.chmod(0o755)
    done = run("ppo", PYTHON=str(stub), RUNS_DIR=str(tmp_path / "runs"))
    events = [re.sub(r" \((exit|another).*", "", line) for line in done.stdout.splitlines()]
    after_the_cut = ["started d", "finished d (1 of 2)", "started a", "finished a (2 of 2)"]
    assert events[:-1] == ["started d", *told, *after_the_cut]
    assert (done.returncode, done.stderr) == (0, "")


def test_runs_go_to_the_gpus_of_the_plan_in_turn_and_each_sees_one(tmp_path):
    train, stub = tmp_path / "train", tmp_path / "python"
    seen = 'echo "$SLOT $CUDA_VISIBLE_DEVICES" >>"$RUNS_DIR/seen"; sleep 0.2'
    train.write_text(f'#!/usr/bin/env bash\nmkdir -p "$RUNS_DIR/$1" && touch "$RUNS_DIR/$1/prune_point.pt"; {seen}\n')
    lines = ["4 5,2", f"d d {train} d --until-cut", *(f"{name} d {train} {name} 2" for name in "dabcefgh")]
    stub.write_text("#!/usr/bin/env bash\n" + "".join(f"echo '{line}'\n" for line in lines))
    for path in (train, stub):
        path.chmod(0o755)
    assert run("ppo", PYTHON=str(stub), RUNS_DIR=str(tmp_path / "runs")).returncode == 0
    slots = [line.split() for line in (tmp_path / "runs" / "seen").read_text().splitlines()]
    assert len(slots) == 9 and {slot for slot, _ in slots} == {"0", "1", "2", "3"}
    assert all(gpu == "52"[int(slot) % 2] for slot, gpu in slots)


def test_a_sweep_that_is_refused_starts_nothing(tmp_path):
    refused = run("ppo", TYPES="foo", RUNS_DIR=str(tmp_path / "runs"))
    assert refused.returncode == 2 and refused.stderr == f"error: TYPES must be words of {' '.join(CRITERIA)}, got foo\n"
    assert refused.stdout == "" and not list(tmp_path.iterdir())


def test_the_plan_of_a_sweep_that_is_gone_ends_without_a_word():
    unread, written = os.pipe()
    os.close(unread)
    words = [sys.executable, "-m", "checks.plan_sweep", "ppo"]
    ended = subprocess.run(words, cwd=ROOT, stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert ended.returncode == -signal.SIGPIPE and ended.stderr.count("\n") == 1  # what the sweep costs


# -------------------------------------------------------------------------------------------------------------- the cost
def test_the_hours_are_those_of_the_runs_that_are_there_and_a_broken_one_counts_for_nothing(tmp_path, capsys):
    dense = {"prune_type": "none", "hidden_size": 512}
    for name, options, precision, rate in (
        ("dense", dense, "fp32", "100.0"),
        ("broken", dense, "fp32", ""),
        ("bf16", dense, "bf16", "900.0"),
        ("half", dense | {"prune_type": "l1-structured"}, "fp32", "900.0"),
        ("small", dense | {"width": 0.5}, "fp32", "900.0"),
    ):
        (tmp_path / name).mkdir()
        config = {"algorithm": "ppo", "options": options, "resolved": {"precision": precision}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "summary.json").write_text(f'{{"time": {{"agent_steps_per_second_while_learning": {rate}}}}}')
    # 2 side by side: the dense run to its cut at 180,224 of 359,424 steps, then 3 runs of 179,200: two after one another
    # 180,224 + 2 * 179,200 = 538,624, / 100 / 3,600 = 1.5 hours
    plan("ppo", "--no-cuda", "--total-timesteps", "360000", RUNS_DIR=str(tmp_path), RATES="0.5", JOBS="2")
    told = f"about 1.5 hours at the speed of 1 finished run of the same network and precision in {tmp_path};"
    printed = capsys.readouterr()
    assert told in printed.err and " 3 runs of 359,424 " in printed.err
    finished = tmp_path / printed.out.splitlines()[-1].split()[0]
    finished.mkdir()
    (finished / "summary.json").touch()
    plan("ppo", "--no-cuda", "--total-timesteps", "360000", RUNS_DIR=str(tmp_path), RATES="0.5", JOBS="2")
    assert " 3 runs (1 finished, counted too) of 359,424 " in capsys.readouterr().err


@both
def test_without_a_finished_run_the_hours_are_those_of_the_benchmark_except_in_bf16_on_a_cpu_without_it(
    algorithm, tmp_path, monkeypatch, capsys
):
    for has_bf16, options, told in (
        (True, [], "at the speed in results/cpu_speed_fp32.json"),
        (True, ["--precision", "bf16"], "at the speed in results/cpu_speed_bf16.json"),
        (False, ["--precision", "bf16"], "hours unknown: no speed has been measured here"),
        (True, ["--precision", "tf32"], "hours unknown: no speed has been measured here"),
    ):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda has=has_bf16: has)
        plan(algorithm, "--no-cuda", *options, RUNS_DIR=str(tmp_path), RATES="0.5", JOBS="2")
        assert told in capsys.readouterr().err


def test_where_not_even_one_run_fits_the_sweep_says_what_is_needed_and_jobs_overrules_it(monkeypatch, capsys):
    monkeypatch.setattr(plan_sweep, "memory", lambda: (3.5e9, 4.0e9))
    monkeypatch.setattr(plan_sweep, "cores", lambda: 8)
    # 1 GB beside the buffer, and 1.2 times DQN's buffer of 1M * 7,061 bytes: 9.5 GB
    with pytest.raises(
        OSError, match=r"one run needs about 9.5 GB of memory, .* has 4.0 GB: take a smaller --buffer-size; JOBS=1"
    ):
        plan("dqn", "--no-cuda")
    assert capsys.readouterr().out == ""
    for variables, jobs in (({"JOBS": "1"}, 1), ({"DRY_RUN": "1"}, 1)):  # a dry run may be of another machine
        plan("dqn", "--no-cuda", **variables)
        assert capsys.readouterr().out.splitlines()[0] == f"{jobs} -"
    plan("dqn", "--no-cuda", "--buffer-size", "10000")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "3 -" and "memory 3.3 GB of 3.5 GB" in printed.err  # 3 * (1 + 1.2 * 0.0706)


# ----------------------------------------------------------------------------------------------------------------- sweeps
def test_a_sweep_killed_again_and_again_finishes_every_run_once_with_the_bits_of_runs_made_alone(small_run, tmp_path):
    algorithm = "dqn"  # whose checkpoints are the larger ones
    options = [*flags(SMALL[algorithm]), "--checkpoint-minutes=0.005"]
    words, environment = sweep(algorithm, *options, RATES="0.5", RUNS_DIR=str(tmp_path), JOBS="2")
    rng = random.Random(3)
    resumed = lambda: sum(len(re.findall(r"resumed at step", log.read_text())) for log in tmp_path.glob("*.log"))  # noqa: E731
    for sign, number in (
        ("*none*/checkpoint.pt", signal.SIGKILL),  # the dense run is on its way to its cut
        ("*-0.5*/checkpoint.pt", signal.SIGKILL),  # an arm is on its way
        ("*/summary.json", signal.SIGTERM),  # a run is finished, and another resumed
    ):
        before, process = resumed(), subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        while not (list(tmp_path.glob(sign)) and (number == signal.SIGKILL or resumed() > before)):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5 * rng.random())
        if number == signal.SIGKILL:  # the driver, xargs and the runs
            subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=True)
        process.send_signal(number)
        assert process.wait() == (143 if number == signal.SIGTERM else -9)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " (3 of 3)" in done.stdout, done.stdout + done.stderr
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


def test_runs_of_a_killed_driver_go_on_and_a_second_sweep_waits_for_them_and_trains_nothing_twice(tmp_path):
    half = 2304  # agent steps: enough time to stop it on its way
    options = flags(SMALL["ppo"] | {"eval_episodes": 0, "total_timesteps": 2 * half})
    words, environment = sweep("ppo", *options, RATES="0.5", TYPES="l1", RUNS_DIR=str(tmp_path), JOBS="2")
    driver = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    orphan = process_of(f"__none__.*--runs-dir {tmp_path} ")
    while not list(tmp_path.glob("*/config.json")):
        time.sleep(0.05)
    subprocess.run(["pkill", "-9", "-s", str(driver.pid), "-x", "bash|xargs"], check=True)  # all but the training
    driver.wait()
    while len(subprocess.run(["pgrep", "-s", str(driver.pid)], capture_output=True).stdout.split()) > 1:
        time.sleep(0.01)  # a process that is stopped while its group loses its parent gets a SIGHUP
    os.kill(orphan, signal.SIGSTOP)
    second = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    (log,) = tmp_path.glob("*.log")
    while "is in use by another process" not in log.read_text():
        assert second.poll() is None
        time.sleep(0.05)
    os.kill(orphan, signal.SIGCONT)
    printed, errors = second.communicate(timeout=600)
    assert second.returncode == 0 and " (2 of 2)" in printed, printed + errors
    ran = {summary(folder)["arm"]: summary(folder)["agent_steps_run"] for folder in tmp_path.iterdir() if folder.is_dir()}
    assert ran == {"none": 2 * half, "l1-0.5": half}
    logs = "".join(file.read_text() for file in tmp_path.glob("*.log"))
    assert set(re.findall(r" at step ([\d,]+) of", logs)) == {f"{half:,}"}


def test_a_run_that_fails_is_named_the_others_finish_and_the_same_command_tries_it_again(tmp_path):
    environment = stubs(tmp_path, "d d --until-cut", "d d", "l d", "r d", faults="[[ $1 != l ]] || exit 2")
    done = run("ppo", **environment)
    assert done.returncode == 1 and f"failed l (exit 2, see {tmp_path}/runs/l.log)\n" in done.stdout
    assert "error: 1 of 3 runs failed" in done.stderr and done.stdout.count("finished ") == 2
    stubs(tmp_path, "d d --until-cut", "d d", "l d", "r d")
    again = run("ppo", **environment)
    assert again.returncode == 0 and again.stdout.count("finished ") == 3 and "paused" not in again.stdout


def test_output_of_a_sweep_that_cannot_be_written_ends_no_training(tmp_path):
    words, environment = sweep("ppo", **stubs(tmp_path, "d d --until-cut", "d d", "l d"))
    with open("/dev/full", "w") as full:
        assert subprocess.run(words, env=environment, stdout=full, stderr=full, timeout=600).returncode == 0
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 2


def test_arms_of_a_dense_run_that_fails_are_named_and_not_started_and_other_seeds_finish(tmp_path):
    lines = "d1 d1 --until-cut", "d2 d2 --until-cut", "d1 d1", "a1 d1", "d2 d2", "a2 d2"
    environment = stubs(tmp_path, *lines, faults="[[ $1 != d1 ]] || kill -9 $$")  # as the kernel does when memory is short
    done, runs = run("ppo", **environment), tmp_path / "runs"
    assert done.returncode == 1 and "error: 2 of 4 runs failed" in done.stderr, done.stdout + done.stderr
    assert f"failed d1 (exit 137, see {runs}/d1.log)\n" in done.stdout
    assert f"failed a1 (not started: {runs}/d1 has no prune_point.pt" in done.stdout and not (runs / "a1").exists()
    assert sorted(re.findall(r"finished (\S+)", done.stdout)) == ["a2", "d2"]
    stubs(tmp_path, *lines)
    done = run("ppo", **environment)
    assert done.returncode == 0 and done.stdout.count("finished ") == 4, done.stdout + done.stderr


def test_arms_of_a_dense_run_that_was_stopped_alone_do_not_wait_for_it_and_the_same_command_resumes(tmp_path):
    lines = "d d --until-cut", "d d", "l d", "r d"
    environment = stubs(tmp_path, *lines, faults="exit 129")  # as after a hang-up
    done = run("ppo", **environment)
    assert done.returncode == 143 and "stopped: 3 of 3 runs are not finished" in done.stderr, done.stdout + done.stderr
    assert "stopped d\n" in done.stdout and done.stdout.count("has no prune_point.pt") == 2
    stubs(tmp_path, *lines)
    done = run("ppo", **environment)
    assert done.returncode == 0 and done.stdout.count("finished ") == 3, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_sigterm_ctrl_c_and_a_closed_terminal_let_the_run_write_its_checkpoint(number, tmp_path):
    options = flags(SMALL["ppo"] | {"eval_episodes": 0, "total_timesteps": 51200})
    words, environment = sweep("ppo", *options, "--checkpoint-minutes=0.001", RATES="0.5", RUNS_DIR=str(tmp_path), JOBS="2")
    default = lambda: signal.signal(number, signal.SIG_DFL)  # noqa: E731 # where the tests run in the background it is ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    driver = subprocess.Popen(words, env=environment, preexec_fn=default, **pipes)
    while not list(tmp_path.glob("*/checkpoint.pt")):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(number)
    if number == signal.SIGHUP:  # a terminal that closes sends it twice
        time.sleep(0.1)
        driver.send_signal(number)
    printed, errors = driver.communicate(timeout=300)
    assert driver.returncode == 143 and "stopped: 3 of 3 runs are not finished; the same command resumes them" in errors
    assert printed.count("stopped ") == 1 and "by SIGTERM" in next(tmp_path.glob("*.log")).read_text()


def test_finished_arms_need_no_prune_point_and_others_are_named_with_what_to_do(tmp_path):
    environment, runs = stubs(tmp_path, "d d --until-cut", "d d", "l d", "r d"), tmp_path / "runs"
    assert run("ppo", **environment).returncode == 0
    (runs / "d" / "prune_point.pt").unlink(), (runs / "l" / "summary.json").unlink()
    again = run("ppo", **environment)
    told = f"failed l (not started: {runs}/d has no prune_point.pt; if it is finished, move it away to train it again)"
    assert again.returncode == 1 and told in again.stdout and "paused" not in again.stdout
    assert re.findall(r"finished (\S+)", again.stdout) in (["d", "r"], ["r", "d"])


def test_the_file_for_wandb_agents_holds_the_ppo_matrix_in_words_that_the_script_takes():
    config = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    grid = {name: parameter["values"] for name, parameter in config["parameters"].items()}
    assert [f"{rate:g}" for rate in grid["prune_rate"]] == STUDY["ppo"] and grid["prune_type"] == ["none", "l1", "random"]
    for values in itertools.product(*grid.values()):  # an agent writes --prune_rate=0.1
        words = [*config["command"][3:-1], *(f"--{name}={value}" for name, value in zip(grid, values, strict=True))]
        args = parse_options(SCRIPTS["ppo"].Args, "", words)
        assert (args.seed, args.prune_type, args.prune_rate) == values and args.track and args.num_threads == 1
    assert config["program"] == "ppo_atari_prune.py" and config["command"][-1] == "${args}"
