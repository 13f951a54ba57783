"""What a user can mistype: one message with the flag, the rule and the value, exit code 2, and nothing written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SCRIPTS, SMALL

ROOT = Path(__file__).resolve().parents[1]
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
    ("learning_rate", -1e-4, "be above 0"),
    ("learning_rate", float("nan"), "be above 0"),
    ("learning_rate", float("inf"), "be above 0"),
    ("gamma", 1.01, "lie in [0, 1]"),
    ("hidden_size", 0, "be at least 1"),
    ("eval_episodes", -1, "be at least 0"),
    ("num_threads", -1, "be at least 0"),
    ("run_name", "../elsewhere", "use only [A-Za-z0-9_.-], and no dot first"),
    ("run_name", "", "use only [A-Za-z0-9_.-], and no dot first"),
]
DQN = [
    ("buffer_size", 31, "hold a minibatch and 8 transitions a game (64)"),
    ("buffer_size", 10**12, "fit into the memory of this machine"),
    ("learning_starts", 2_000_000, "be at least --num-envs (8) and below --total-timesteps (2000000)"),
    ("learning_starts", 7, "be at least --num-envs (8) and below"),
    ("batch_size", 0, "be at least 1"),
    ("train_frequency", 0, "be at least 1"),
    ("target_network_frequency", 0, "be at least 1"),
    ("tau", 0.0, "lie in (0, 1]"),
    ("end_e", 1.1, "lie in [0, 1]"),
    ("exploration_fraction", 0.0, "lie in (0, 1]"),
]
PPO = [
    ("num_minibatches", 3, "divide a rollout of num_envs * num_steps = 1024 agent steps"),
    ("num_minibatches", 1024, "leave two agent steps a minibatch, or more, with --norm-adv"),
    ("total_timesteps", 1023, "hold one rollout (1024 agent steps)"),
    ("num_steps", 0, "be at least 1"),
    ("update_epochs", 0, "be at least 1"),
    ("gae_lambda", -0.5, "lie in [0, 1]"),
    ("clip_coef", 0.0, "be above 0"),
    ("max_grad_norm", 0.0, "be above 0"),
    ("ent_coef", float("inf"), "be at least 0"),
    ("target_kl", 0.0, "be above 0"),
]
CASES = [(a, *case) for a in ("dqn", "ppo") for case in BOTH] + [("dqn", *c) for c in DQN] + [("ppo", *c) for c in PPO]


@pytest.mark.parametrize(("algorithm", "option", "value", "rule"), CASES)
def test_a_wrong_value_is_refused_with_its_flag_rule_and_value_before_anything_is_built(algorithm, option, value, rule):
    script = SCRIPTS[algorithm]
    flag = option.replace("_", "-")
    with pytest.raises(script.UserError, match=f"^--{flag} must .*{re.escape(rule)}.*got {re.escape(str(value))}") as caught:
        script.Args(**{option: value})
    assert "\n" not in str(caught.value)


def command(*words, cwd: Path) -> subprocess.CompletedProcess:
    script = [sys.executable, str(ROOT / "ppo_atari_prune.py")]
    return subprocess.run([*script, *words], cwd=cwd, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


def test_the_command_line_shows_a_wrong_value_without_a_traceback_exits_2_and_writes_nothing(tmp_path):
    done = command("--prune-rate", "1.0", cwd=tmp_path)
    assert done.returncode == 2 and "--prune-rate must lie in [0, 1), got 1.0" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == "" and not any(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_written_is_one_line_and_exit_2(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = command("--runs-dir", "file/runs", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and "Traceback" not in done.stderr and [p.name for p in tmp_path.iterdir()] == ["file"]
    assert len(lines) == 1 and lines[0].startswith("error: --runs-dir must be a folder that can be written, got file/runs/")


def test_cuda_wanted_where_there_is_none_is_no_error_but_a_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    script = SCRIPTS["dqn"]
    assert script.resolve(script.Args(**SMALL["dqn"], cuda=True), {})["device"] == "cpu"
    assert capsys.readouterr().err == "no CUDA device: training on the CPU\n"
    script.resolve(script.Args(**SMALL["dqn"], cuda=False), {})
    assert capsys.readouterr().err == ""
