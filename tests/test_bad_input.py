"""What a user can mistype: one message with the flag, the rule and the value, exit code 2, and nothing written."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import docstring_parser
import pytest
import torch

from prune_utils import device
from prune_utils.basics import GROUPS, Busy, UserError, exit_codes, parse_options
from prune_utils.run import OF_THE_CUT
from tests.conftest import SCRIPTS, SHORT, flags

ROOT = Path(__file__).resolve().parents[1]
NAME = "be 1 to 200 of the characters [A-Za-z0-9_.-], and no dot first"
BOTH = [
    ("env_id", "NoSuchGame-v4", "be an Atari id that Gymnasium knows"),
    ("env_id", "CartPole-v1", "be an Atari game"),
    ("prune_rate", 1.0, "lie in [0, 1)"),
    ("prune_rate", -0.1, "lie in [0, 1)"),
    ("prune_rate", float("nan"), "lie in [0, 1)"),
    ("prune_at", -0.1, "lie in [0, 1]"),
    ("prune_at", 1.5, "lie in [0, 1]"),
    ("num_envs", 0, "be at least 1"),
    ("seed", -1, "be at least 0"),
    ("learning_rate", -1e-4, "be finite and above 0"),
    ("learning_rate", float("nan"), "be finite and above 0"),
    ("learning_rate", float("inf"), "be finite and above 0"),
    ("gamma", 1.01, "lie in [0, 1]"),
    ("hidden_size", 0, "lie in 1 to 65536"),
    ("hidden_size", 2_000_000_000, "lie in 1 to 65536"),
    ("width", 0.0, "lie in (0, 16]"),
    ("eval_episodes", -1, "be at least 0"),
    ("num_threads", -1, "be at least 0"),
    ("checkpoint_minutes", -1.0, "be finite, at least 0"),
    ("checkpoint_minutes", float("nan"), "be finite, at least 0"),
    ("wandb_project_name", "a/b", "be 1 to 128 characters"),
    ("fork_seed", 1, "come with --fork-from"),
    ("until_cut", True, "come with --prune-type none and without --fork-from"),
    ("run_name", "../elsewhere", NAME),
    ("run_name", "", NAME),
    ("run_name", "x" * 201, NAME),
]
DQN = [
    ("buffer_size", 31, "lie in 64 to "),
    ("buffer_size", 10**12, ": at least a minibatch and 8 transitions per game, at most the memory here"),
    (
        "learning_starts",
        2_000_000,
        "be at least --num-envs (8) and below the last gradient update of --total-timesteps (2000000)",
    ),
    ("learning_starts", 7, "be at least --num-envs (8) and below the last gradient update"),
    ("batch_size", 0, "be at least 1"),
    ("train_frequency", 0, "be at least 1"),
    ("target_network_frequency", 0, "be at least 1"),
    ("tau", 0.0, "lie in (0, 1]"),
    ("end_e", 1.1, "lie in [0, 1]"),
    ("eval_epsilon", -0.01, "lie in [0, 1]"),
    ("exploration_fraction", 0.0, "lie in (0, 1]"),
]
PPO = [
    ("num_minibatches", 3, "divide a rollout of num_envs * num_steps = 1024 agent steps"),
    ("num_minibatches", 1024, "leave at least two agent steps per minibatch, with --norm-adv"),
    ("total_timesteps", 1023, "hold one rollout (1024 agent steps)"),
    ("num_steps", 0, "be at least 1"),
    ("num_steps", 10**9, "fits into memory here"),
    ("update_epochs", 0, "be at least 1"),
    ("gae_lambda", -0.5, "lie in [0, 1]"),
    ("clip_coef", 0.0, "be finite and above 0"),
    ("max_grad_norm", float("inf"), "be finite and above 0"),
    ("ent_coef", float("inf"), "be finite, at least 0"),
    ("target_kl", 0.0, "be above 0"),
]
CASES = [(a, *case) for a in ("dqn", "ppo") for case in BOTH] + [("dqn", *c) for c in DQN] + [("ppo", *c) for c in PPO]


@pytest.mark.parametrize(("options", "last"), [({"total_timesteps": 80_007}, 80_000), ({"train_frequency": 3_000_000}, 0)])
def test_a_dqn_that_would_end_without_a_gradient_update_is_refused(options, last):
    # 80,007 steps of 8 games are 80,000, which is when learning starts; the first multiple of 3M is after the end
    rule = rf"be at least --num-envs \(\d+\) and below the last gradient update of --total-timesteps \({last}\)"
    with pytest.raises(UserError, match=f"^--learning-starts must {rule}"):
        SCRIPTS["dqn"].Args(**options)


@pytest.mark.parametrize(("algorithm", "option", "value", "rule"), CASES)
def test_a_wrong_value_is_refused_with_its_flag_rule_and_value_before_anything_is_built(algorithm, option, value, rule):
    flag = option.replace("_", "-")
    with pytest.raises(UserError, match=f"^--{flag} must .*{re.escape(rule)}.*got {re.escape(str(value))}") as caught:
        SCRIPTS[algorithm].Args(**{option: value})
    assert "\n" not in str(caught.value)


def test_a_fork_is_no_dense_run_that_could_end_at_its_cut_and_its_seed_is_at_least_0():
    with pytest.raises(UserError, match=r"^--until-cut must come with --prune-type none and without --fork-from, got True$"):
        SCRIPTS["ppo"].Args(prune_type="none", fork_from="runs/dense", until_cut=True)
    with pytest.raises(UserError, match=r"^--fork-seed must be at least 0, got -1$"):
        SCRIPTS["ppo"].Args(fork_from="runs/dense", fork_seed=-1)


def test_a_structured_cut_takes_whole_units_layer_by_layer_with_their_biases():
    with pytest.raises(UserError, match=r"^--prune-scope must be layer with l1-structured, got global$"):
        SCRIPTS["dqn"].Args(prune_type="l1-structured", prune_scope="global")
    with pytest.raises(UserError, match=r"^--prune-bias must stay on with random-structured, .*, got False$"):
        SCRIPTS["ppo"].Args(prune_type="random-structured", prune_bias=False)


def test_a_mistyped_mode_of_wandb_is_told_before_the_training_where_wandb_is_asked_for(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "foo")
    SCRIPTS["dqn"].Args()
    with pytest.raises(UserError, match=r"^WANDB_MODE must be online, offline, shared, disabled or unset, got foo$"):
        SCRIPTS["ppo"].Args(track=True)


def test_the_command_line_shows_a_wrong_value_without_a_traceback_exits_2_and_writes_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "ppo_atari_prune.py"), "--prune-rate", "1.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and not any(tmp_path.iterdir())
    assert done.stderr == "error: --prune-rate must lie in [0, 1), got 1.0\n"


def test_a_run_folder_that_cannot_be_written_is_one_line_and_exit_2(tmp_path, monkeypatch, main, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    assert main("ppo", {"runs_dir": "file/runs", "cuda": False}) == 2 and [p.name for p in tmp_path.iterdir()] == ["file"]
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert output.err.startswith("error: --runs-dir must be a folder that can be written, got file/runs/")


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_help_begins_with_what_the_script_does_and_shows_every_option_in_a_group_with_its_text(algorithm, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")  # wider ones get two columns
    script = SCRIPTS[algorithm]
    with pytest.raises(SystemExit, match="0"):
        parse_options(script.Args, script.__doc__, ["--help"])
    usage, text = capsys.readouterr().out.split("\n\n", 1)
    assert usage.startswith("usage: ") and text.startswith(script.__doc__.splitlines()[0] + "\n")
    shown, title = {}, ""
    for line in text.splitlines():  # in boxes, where a terminal can show them
        if heading := re.fullmatch(r"\W*(\S+) options\W*", line):
            title = heading[1]
        if flag := re.match(r"(?:│ |  )--([a-z-]+)", line):
            shown.setdefault(title, set()).add(flag[1].replace("-", "_"))
    options = {field.name for field in fields(script.Args)}
    grouped = {title.replace("_", "-"): set(names.split()) for title, names in GROUPS.items()}
    assert shown == {"algorithm": options - set().union(*grouped.values())} | grouped
    assert {"learning_rate", "gamma", "total_timesteps", "num_envs"} < shown["algorithm"]
    assert shown["pruning"] == OF_THE_CUT - {"fork_seed"} | {"prune_at"}
    words = " ".join(text.replace("│", " ").split())
    texts = docstring_parser.parse_from_object(script.Args).params
    assert len(texts) == len(options) and not [t.arg_name for t in texts if " ".join(t.description.split()) not in words]


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_the_command_line_gives_each_option_its_name_default_and_type(algorithm):
    script = SCRIPTS[algorithm]
    assert parse_options(script.Args, "", []) == script.Args()
    other = {
        "prune_rate": 0.25,
        "prune_bias": False,
        "run_name": "r",
        "num_envs": 2,
        "prune_scope": "global",
        "until_cut": True,
    }
    other |= {"prune_type": "none", "total_timesteps": 90_000}
    assert parse_options(script.Args, "", flags(other)) == script.Args(**other)


@pytest.mark.parametrize(("capability", "expected"), [(None, "fp32"), ((8, 0), "tf32"), ((9, 0), "tf32"), ((7, 5), "fp32")])
def test_precision_auto_is_tf32_on_a_gpu_that_has_it_and_fp32_elsewhere(capability, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    found = device.resolve(cuda=True, precision="auto", num_threads=1, recorded={})
    assert found == {"device": "cuda" if capability else "cpu", "precision": expected, "num_threads": 1}
    # what a run recorded elsewhere is kept where it can be, so that another machine is seen as a difference
    recorded = device.resolve(cuda=True, precision="auto", num_threads=1, recorded={"precision": "tf32"})
    assert recorded["precision"] == expected


@pytest.mark.parametrize(("cuda", "capability"), [(True, None), (False, (9, 0)), (True, (7, 5))])
def test_tf32_is_refused_where_no_gpu_computes_in_it(cuda, capability, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    told = "--precision must be auto, bf16 or fp32 where no GPU of compute capability 8.0 or more is used, got tf32"
    with pytest.raises(UserError, match=f"^{told}$"):
        device.resolve(cuda=cuda, precision="tf32", num_threads=1, recorded={})


def test_many_threads_on_cores_that_are_busy_are_a_hint_and_one_thread_is_none(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    for load, threads, hint in ((0.0, 8, False), (os.cpu_count(), 8, True), (os.cpu_count(), 1, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        device.configure(threads, "fp32", deterministic=True)
        told = capsys.readouterr().err
        assert told == "other processes keep the cores busy: --num-threads 1 may be faster than 8 threads\n" * hint


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("option", ["seed", "total_timesteps", "num_envs", "num_threads"])
def test_a_number_of_400_digits_is_one_line(algorithm, option, main, tmp_path, capsys):
    assert main(algorithm, {"runs_dir": str(tmp_path / "runs"), option: 10**400}) == 2
    assert f"--{option.replace('_', '-')} must be below 2**40" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_hundred_thousand_threads_are_one_line(main, tmp_path, capsys):
    assert main("ppo", {"runs_dir": str(tmp_path / "runs"), "num_threads": 100_000}) == 2
    assert "--num-threads must be at most 1024, got 100000" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_network_that_does_not_fit_into_memory_is_one_line(algorithm, main, tmp_path, capsys):
    assert main(algorithm, {"runs_dir": str(tmp_path / "runs"), "hidden_size": 65_536, "width": 16}) == 2
    told = capsys.readouterr().err
    # 7 * 7 * (16 * 64) * (16 * 65536)
    rule = "--hidden-size must be smaller: with --width 16 fc1 has 52,613,349,376 weights, and "
    assert rule in told and " fit into memory here, got 65536" in told and not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithm", SCRIPTS)
@pytest.mark.parametrize("games", [0, 1])
def test_a_training_that_diverges_ends_with_one_line_and_is_not_finished(algorithm, games, main, tmp_path, capsys):
    options = SHORT[algorithm] | {"learning_rate": 1e30, "eval_episodes": games, "runs_dir": str(tmp_path), "run_name": "a"}
    assert main(algorithm, options | {"prune_type": "none"}) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "the training has diverged" in lines[0]
    if algorithm == "ppo":
        assert "_loss is nan at step 16: " in lines[0]  # at the first loss that is logged
    assert not (tmp_path / "a" / "summary.json").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(UserError, 2), (Busy, 75), (OSError, 1), (FloatingPointError, 1), (torch.OutOfMemoryError, 1)]
)
def test_what_can_be_expected_to_go_wrong_is_one_line_and_a_code(error, code, capsys):
    with pytest.raises(SystemExit) as end, exit_codes():
        raise error("what happened")
    assert end.value.code == code and capsys.readouterr().err == "error: what happened\n"


def test_ctrl_c_before_a_run_listens_to_it_ends_with_130_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as end, exit_codes():
        raise KeyboardInterrupt
    assert end.value.code == 130 and not capsys.readouterr().err
