"""The no-skill baseline: python -m evals.no_skill."""

import sys

import pandas as pd
import pytest
import torch

from analysis.no_skill import NoSkill, read_no_skill
from evals import no_skill
from prune_utils.basics import UserError

OBS = torch.zeros(1000, 4, 84, 84, dtype=torch.uint8)


def actions(action: int, epsilon: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return no_skill.held_action(action, 6, epsilon, generator)(OBS)


def test_a_held_action_is_that_action_but_for_the_share_epsilon_of_random_ones():
    assert (actions(3, 0.0) == 3).all()
    # 5 of 6 random actions are others: of 1000 at epsilon 0.3 some 250, standard deviation 14
    assert 200 < (actions(3, 0.3) != 3).sum() < 300
    assert actions(0, 1.0).bincount(minlength=6).min() > 120  # uniform: 167, standard deviation 12


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["no_skill", *words])
    no_skill.main()


def test_every_action_and_random_play_get_a_row_and_those_of_other_games_stay(tmp_path, monkeypatch):
    asked = []

    def play(policy, env_id, eval_episodes, seed, num_threads):
        asked.append((policy(OBS).mode().values.item(), env_id, eval_episodes))
        return [{"return": 10.0 * len(asked) + k, "length": 7} for k in range(eval_episodes)]

    monkeypatch.setattr(no_skill, "play", play)
    file = tmp_path / "floor.csv"
    head = "env_id,policy,epsilon,games,mean,low,high\n"
    file.write_text(f"{head}BreakoutNoFrameskip-v4,random,1,3,1.5,1,2\nPongNoFrameskip-v4,random,1,3,99,98,99\n")
    call(monkeypatch, "--env-id", "PongNoFrameskip-v4", "--eval-episodes", "3", "--out", str(file))
    table = pd.read_csv(file)
    assert table.env_id.tolist() == ["BreakoutNoFrameskip-v4"] + ["PongNoFrameskip-v4"] * 7
    assert table.policy.tolist() == ["random", "random", "NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert table["mean"].tolist() == [1.5, 11, 21, 31, 41, 51, 61, 71] and table.epsilon.tolist()[1:] == [1] + [0.01] * 6
    assert [action for action, *_ in asked[1:]] == [0, 1, 2, 3, 4, 5] and {n for *_, n in asked} == {3}
    # 70 71 72: deviation 1, t(2) 4.302653
    assert table.high.iloc[-1] == pytest.approx(71 + 4.302653 / 3**0.5, abs=1e-4) and table.distinct.iloc[-1] == 3
    found = read_no_skill(file)["PongNoFrameskip-v4"]
    assert (found.held["policy"], found.random["mean"], found.best) == ("LEFTFIRE", 11, 71)


def test_the_floor_is_random_play_where_that_beats_every_held_action():
    floor = NoSkill({"mean": 70.0, "high": 75.0}, {"mean": 50.0, "high": 55.0})
    assert (floor.best, floor.ceiling) == (70, 75)


def test_a_held_action_is_played_for_whole_games(tmp_path, monkeypatch, capsys):
    args = no_skill.Args(env_id="SpaceInvadersNoFrameskip-v4", eval_episodes=2, num_threads=1)
    row = no_skill.measure(args, "NOOP", 0, 0.01, 6)
    assert row["games"] == 2 and 0 <= row["mean"] < 100 and row["low"] <= row["mean"] <= row["high"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--eval-episodes", "1"], "--eval-episodes must be at least 2, got 1"),
        (["--epsilon", "1.5"], "--epsilon must lie in [0, 1], got 1.5"),
        (["--env-id", "CartPole-v1"], "--env-id must be an Atari game, got CartPole-v1"),
        (["--out", __file__], f"--out must be a table of evals.no_skill, got {__file__}: ParserError"),
        (["--out", "/nowhere/x.csv"], "--out must be a file in a folder that can be written, got /nowhere/x.csv"),
    ],
)
def test_an_option_that_breaks_its_rule_is_one_line_and_exit_code_2(words, told, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *words)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_file_that_is_no_such_table_is_an_error_of_the_user_and_a_missing_one_is_empty(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        UserError, match=r"^--no-skill must be a table of evals.no_skill, got .*other.csv: it lacks env_id, epsilon, "
    ):
        read_no_skill(tmp_path / "other.csv")
    for value, told in (("many", "Unable to parse string"), ("", "it lacks high")):
        head = "env_id,policy,epsilon,games,mean,low,high\n"
        (tmp_path / "torn.csv").write_text(f"{head}PongNoFrameskip-v4,NOOP,0,3,1,0,{value}\n")
        with pytest.raises(UserError, match=f"^--no-skill must be a table of evals.no_skill, got .*torn.csv: {told}"):
            read_no_skill(tmp_path / "torn.csv")
    assert read_no_skill(tmp_path / "missing.csv") == {}
