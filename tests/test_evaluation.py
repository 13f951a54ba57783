"""Whole games of a network: which games count, their statistics, multiply-adds, and the evaluators' command lines."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

from evals import common, dqn_eval, ppo_eval
from prune_utils import evaluation, storage
from prune_utils.basics import derive_seed
from prune_utils.device import FoldedConv2d
from prune_utils.run import MOMENTS
from tests.conftest import SCRIPTS, SHORT, rows, summary, weights

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "SpaceInvadersNoFrameskip-v4"
NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}
EVALUATORS = {"dqn": dqn_eval, "ppo": ppo_eval}
POLICIES = {"dqn": "epsilon 0.01", "ppo": "sampled"}
both = pytest.mark.parametrize("algorithm", NETWORKS)


# ------------------------------------------------------------------------------------------------------------------ games
def shoot_and_move(obs: torch.Tensor) -> torch.Tensor:
    """Actions that depend on their row alone: a lone game repeats them."""
    return 1 + obs[:, 3, 60:].sum(dim=(1, 2)) % 5


def test_the_first_game_of_each_environment_counts_and_equals_the_game_played_alone():
    seen = []

    def policy(obs: torch.Tensor) -> torch.Tensor:
        seen.append(len(obs))
        return shoot_and_move(obs)

    played = evaluation.play(policy, ENV_ID, 4, seed=11, num_threads=1)
    assert [(row["episode"], row["seed"]) for row in played] == [(k, 11 + k) for k in range(4)]
    alone = [evaluation.play(policy, ENV_ID, 1, seed=11 + k, num_threads=1)[0] for k in range(4)]
    assert [(r["return"], r["length"]) for r in played] == [(r["return"], r["length"]) for r in alone]
    lengths = [row["length"] for row in played]
    assert seen[: max(lengths)] == [4] * max(lengths)  # the batch keeps its size until the longest game is over
    assert sum(lengths) < 4 * max(lengths) and not any(row["truncated"] for row in played)


def test_more_games_than_environments_are_played_in_turns_that_are_settled_beforehand(monkeypatch):
    def play(environments: int, eval_episodes: int, seed: int) -> list[tuple]:
        monkeypatch.setattr(evaluation, "ENVIRONMENTS", environments)
        played = evaluation.play(shoot_and_move, ENV_ID, eval_episodes, seed, num_threads=2)
        assert [row["episode"] for row in played] == list(range(eval_episodes))
        return [(row["seed"], row["return"], row["length"]) for row in played]

    first, second, together = play(1, 3, seed=11), play(1, 2, seed=12), play(2, 5, seed=11)
    assert together[::2] == first and together[1::2] == second
    assert len({length for _, _, length in together}) == 5  # each another game


def test_an_evaluation_tells_the_actions_of_each_step_and_can_be_ended_at_it():
    told = []

    def each_step(actions):
        told.append(actions.tolist())
        if len(told) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.play(lambda obs: torch.tensor([3, len(told) % 2]), ENV_ID, 2, seed=11, num_threads=1, each_step=each_step)
    assert told == [[3, 0], [3, 1], [3, 0], [3, 1], [3, 0], [3, 1], [3, 0]]


def test_the_share_of_the_commonest_action_is_counted_over_all_environments_and_steps(monkeypatch, tmp_path):
    def play(policy, env_id, episodes, seed, num_threads, each_step):
        for actions in ([0, 3, 3], [3, 1, 0]):
            each_step(np.array(actions))
        return [{"episode": 0, "seed": seed, "return": 5.0, "length": 2, "truncated": False}]

    script = SCRIPTS["ppo"]
    monkeypatch.setattr(evaluation, "play", play)
    options = SHORT["ppo"] | {"eval_episodes": 1, "prune_type": "none", "runs_dir": str(tmp_path), "run_name": "r"}
    measured = json.loads((script.train(script.Args(**options)) / "summary.json").read_text())["eval"]
    assert {moment: score["commonest_action_share"] for moment, score in measured.items()} == dict.fromkeys(MOMENTS, 0.5)


def test_statistics_are_the_mean_the_deviation_and_a_t_interval_by_hand():
    # mean 2.5; squares 2.25 + .25 + .25 + 2.25 = 5, / 3, root 1.29099; t(3, 97.5 %) = 3.18245; 3.18245 * 1.29099 / 2 = 2.05426
    score = evaluation.statistics([1.0, 2.0, 3.0, 4.0])
    assert (score["n"], score["mean"]) == (4, 2.5) and score["std"] == pytest.approx(1.29099, abs=1e-5)
    assert score["ci95"] == pytest.approx([2.5 - 2.05426, 2.5 + 2.05426], abs=1e-4)
    assert evaluation.statistics([7.0]) == {"n": 1, "mean": 7.0, "std": None, "ci95": None}
    assert evaluation.statistics([7.0, 7.0, 7.0]) == {"n": 3, "mean": 7.0, "std": 0.0, "ci95": [7.0, 7.0]}


# --------------------------------------------------------------------------------------------------------------- policies
class Fixed(nn.Module):
    """A network that gives every observation the same values or logits, which are its head's biases."""

    def __init__(self, outputs: list[float], algorithm: str):
        super().__init__()
        head = nn.Linear(1, len(outputs))
        head.weight.data.zero_(), head.bias.data.copy_(torch.tensor(outputs))
        self.algorithm, self.fc2, self.actor = algorithm, head, head

    def forward(self, obs):
        outputs = self.fc2(torch.zeros(len(obs), 1))
        return (outputs, outputs[:, 0]) if self.algorithm == "ppo" else outputs


def counts(algorithm: str, outputs: list[float], n: int, make_policy=None, **options) -> np.ndarray:
    policy = (make_policy or SCRIPTS[algorithm].make_policy)(Fixed(outputs, algorithm), seed=0, **options)
    with torch.no_grad():
        return np.bincount(policy(torch.zeros(n, 4, 1, 1, dtype=torch.uint8)).numpy(), minlength=len(outputs))


def test_dqn_takes_a_random_action_at_the_rate_of_epsilon_by_default_one_of_100():
    values = [0.0, 3.0, 1.0, 2.0]
    # each wrong action: 200,000 * .01 / 4 = 500, standard deviation 22; at .2 10,000, 97
    for options, expected, deviation in (({}, 500, 22), ({"epsilon": 0.2}, 10_000, 97)):
        assert (abs(counts("dqn", values, 200_000, **options)[[0, 2, 3]] - expected) < 5 * deviation).all()
    assert counts("dqn", values, 200_000, epsilon=0.0).tolist() == [0, 200_000, 0, 0]


def test_ppo_samples_the_softmax_of_its_logits_and_takes_the_best_action_when_greedy():
    shares = np.array([0.1, 0.2, 0.7])
    found = counts("ppo", np.log(shares).tolist(), 200_000)
    assert (abs(found - 200_000 * shares) < 5 * np.sqrt(200_000 * shares * (1 - shares))).all()
    greedy = counts("ppo", np.log(shares).tolist(), 1000, EVALUATORS["ppo"].make_greedy_policy)
    assert greedy.tolist() == [0, 0, 1000]


# --------------------------------------------------------------------------------------------------- what a network costs
def test_multiply_adds_are_counted_by_hand():
    # 20*20 * 32*4*8*8 + 9*9 * 64*32*4*4 + 7*7 * 64*64*3*3 + 3136*512 + 512*6
    dense = 3_276_800 + 2_654_208 + 1_806_336 + 1_605_632 + 3_072
    network = SCRIPTS["dqn"].QNetwork(6)
    for parameter in network.parameters():
        nn.init.ones_(parameter)  # one of 1.7 million weights drawn from 24 bits is 0 now and then
    assert evaluation.multiply_adds(network) == {"dense": dense, "nonzero": dense}
    with torch.no_grad():
        network.fc1.weight[:100] = 0
        network.conv2.weight[0, 0, 0, 0] = 0
    assert evaluation.multiply_adds(network) == {"dense": dense, "nonzero": dense - 100 * 3136 - 81}


# ---------------------------------------------------------------------------------------------------------- command line
def evaluator(algorithm: str, monkeypatch, *words) -> None:
    monkeypatch.setattr("sys.argv", [f"{algorithm}_eval", *map(str, words)])
    EVALUATORS[algorithm].main()


def refused(algorithm: str, monkeypatch, capsys, *words) -> str:
    """The one line with which an evaluator ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        evaluator(algorithm, monkeypatch, *words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@both
def test_the_evaluator_plays_a_saved_model_prints_its_interval_and_writes_its_games(algorithm, small_run, tmp_path):
    folder = small_run(algorithm, prune_type="none")
    words = ["--eval-episodes=2", "--seed=5", f"--out={tmp_path / 'games.csv'}"]
    call = [sys.executable, "-m", f"evals.{algorithm}_eval", str(folder), *words]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    played = rows(tmp_path / "games.csv")
    assert [row["episode"] for row in played] == ["0", "1"] and list(tmp_path.iterdir()) == [tmp_path / "games.csv"]
    score, how = evaluation.statistics([float(row["return"]) for row in played]), POLICIES[algorithm]
    text = f"2 games of {ENV_ID}, {how}, mean return {score['mean']:.1f}, std {score['std']:.1f}, 95 % interval ["
    assert text in done.stdout and f"{storage.storage_bytes(weights(folder))['coo']:,} as coo" in done.stdout


@both
def test_a_loaded_network_plays_the_very_games_of_its_runs_final_evaluation_given_their_seed(algorithm, small_run):
    folder = small_run(algorithm, prune_type="none")
    network, env_id = common.load(folder, NETWORKS[algorithm])
    assert isinstance(network.conv1, FoldedConv2d) and isinstance(network.conv2, FoldedConv2d)  # to the bit as in the run
    seed = derive_seed(1, "final")
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")  # where the run played
    (game,) = evaluation.play(SCRIPTS[algorithm].make_policy(network, seed), env_id, 1, seed, num_threads=1)
    (final,) = [row for row in rows(folder / "eval.csv") if row["moment"] == "final"]
    assert {name: str(value) for name, value in game.items()}.items() <= final.items()


@both
def test_the_packed_file_plays_the_same_games_as_model_pt_score_for_score(algorithm, small_run, monkeypatch, tmp_path, capsys):
    folder, played = small_run(algorithm, prune_type="l1", prune_rate=0.5), []
    for name in ("model.pt", "model_packed.npz"):
        evaluator(algorithm, monkeypatch, folder / name, "--eval-episodes=2", f"--out={tmp_path / 'games.csv'}")
        played.append(rows(tmp_path / "games.csv"))
    assert played[0] == played[1] and len(played[0]) == 2
    shutil.copy(folder / "config.json", tmp_path)
    shutil.copy(folder / "model_packed.npz", tmp_path)  # a folder that has no other model
    evaluator(algorithm, monkeypatch, tmp_path, "--eval-episodes=2", f"--out={tmp_path / 'games.csv'}")
    assert rows(tmp_path / "games.csv") == played[0]
    with open(tmp_path / "model_packed.npz", "r+b") as file:
        file.truncate(1000)
    line = refused(algorithm, monkeypatch, capsys, tmp_path / "model_packed.npz", "--eval-episodes=2")
    assert "cut short, altered, or no packed model" in line


def test_dqn_is_evaluated_with_the_epsilon_that_its_run_recorded_or_another(small_run, monkeypatch, tmp_path):
    config = json.loads((small_run("dqn", prune_type="none") / "config.json").read_text())
    (tmp_path / "model.pt").touch()
    used = []
    monkeypatch.setattr(common, "run", lambda args, network, policy, how, *_: used.append((policy.keywords["epsilon"], how)))
    for recorded, words in ((0.3, []), (0.3, ["--epsilon=0.05"]), (0.3, ["--greedy"]), (None, [])):
        config["options"]["eval_epsilon"] = recorded
        if recorded is None:  # a run of an earlier version
            del config["options"]["eval_epsilon"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        evaluator("dqn", monkeypatch, tmp_path, *words)
    assert used == [(0.3, "epsilon 0.3"), (0.05, "epsilon 0.05"), (0.0, "greedy"), (0.01, "epsilon 0.01")]


STRANGE = {
    "no units": {"fc1.weight": torch.zeros(10**9, 0)},
    "another type": {"fc1.weight": torch.zeros(64, 3136, dtype=torch.int8)},
    "no dimension": {"fc1.weight": torch.tensor(1.0)},
    "another shape": {"conv1.weight": torch.zeros(32, 4, 4, 8)},
    "one too many": {"fc3.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_model_with_a_strange_tensor_is_refused_in_one_line(strange, small_run, monkeypatch, tmp_path, capsys):
    tensors = weights(small_run("ppo", prune_type="none"))
    torch.save(tensors | STRANGE[strange], tmp_path / "model.pt")
    line = refused("ppo", monkeypatch, capsys, tmp_path / "model.pt", f"--env-id={ENV_ID}")
    assert line.startswith("error: MODEL must be a saved Agent for ")


def test_pruned_first_a_model_shows_the_loss_without_recovery_and_its_file_stays_as_it_is(
    small_run, monkeypatch, tmp_path, capsys
):
    folder = shutil.copytree(small_run("ppo", prune_type="none"), tmp_path / "run")
    before = (folder / "model.pt").read_bytes()
    evaluator("ppo", monkeypatch, folder, "--eval-episodes=1", "--prune-type=l1", "--prune-rate=0.8", "--greedy")
    out = capsys.readouterr().out
    left, entries = map(int, re.search(r"pruning left (\d+) of (\d+) entries", out.replace(",", "")).groups())
    assert 0.19 * entries < left <= 0.2 * entries + 10 and "nothing changed" not in out
    coo = int(out.split(" as coo")[0].split()[-1].replace(",", ""))
    # 20 bytes for each of a fifth of 12,656 entries and 36 for 6,400 in convolutions are 96,700; the archive has some more
    assert 96_700 < coo < 104_000
    assert (folder / "games-1_s1_greedy_l1-0.8_layer.csv").is_file() and (folder / "model.pt").read_bytes() == before
    for name in ("a.pt", "b.pt"):
        shutil.copy(folder / "model.pt", folder / name)
        evaluator("ppo", monkeypatch, folder / name, "--eval-episodes=1", "--env-id=ALE/SpaceInvaders-v5")
    written = {path.name for path in folder.glob("games-*_sampled*.csv")}
    assert written == {f"games-1_s1_sampled_ALE-SpaceInvaders-v5_{name}.csv" for name in "ab"}


def test_the_agent_that_the_quickstart_plays_has_lost_half_of_every_tensor_and_beats_random_play(monkeypatch, tmp_path, capsys):
    agent = ROOT / "results" / "agents" / "ppo_l1-0.5_s1"
    for name, tensor in storage.load_weights(agent).items():
        assert int((tensor == 0).sum()) == round(0.5 * tensor.numel()), name
    evaluator("ppo", monkeypatch, agent, f"--out={tmp_path / 'games.csv'}")
    played = [float(row["return"]) for row in rows(tmp_path / "games.csv")]
    assert len(played) == 10 and np.mean(played) > 250  # random play scores 147, this agent 445 in 100 games
    words = ("--eval-episodes=1", "--prune-type=l1", "--prune-rate=0.5", f"--out={tmp_path / 'games.csv'}")
    evaluator("ppo", monkeypatch, agent, *words)
    assert "pruning left 843,860 of 843,860 entries that are not zero; nothing changed\n" in capsys.readouterr().out


def test_the_python_of_readme_and_start_page_plays_an_agent_and_its_plain_function_has_the_same_outputs(monkeypatch, tmp_path):
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)  # the start page writes a model.pt
    names: dict = {}
    for page in ("README.md", "docs/start.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
        assert blocks
        for block in blocks:
            exec(block, names)
    assert names["action"].tolist()[0] in range(6)
    with torch.no_grad():
        torch.testing.assert_close(names["logits"](names["frames"]), names["agent"](names["frames"])[0])


def test_a_video_of_one_game_in_colour_is_recorded_on_demand(small_run, monkeypatch, tmp_path, capsys):
    import cv2

    pytest.importorskip("imageio_ffmpeg")
    folder = shutil.copytree(small_run("dqn", prune_type="none"), tmp_path / "run")
    evaluator("dqn", monkeypatch, folder / "model.pt", "--eval-episodes=1", "--seed=3", "--capture-video")
    (file,) = folder.glob("*.mp4")
    assert "recorded a game with a return of " in capsys.readouterr().out
    video = cv2.VideoCapture(str(file))
    assert video.get(cv2.CAP_PROP_FPS) == 15 and video.get(cv2.CAP_PROP_FRAME_COUNT) > 100
    assert (video.get(cv2.CAP_PROP_FRAME_HEIGHT), video.get(cv2.CAP_PROP_FRAME_WIDTH)) == (210, 160)
    frame = video.read()[1].astype(int)
    assert (abs(frame[..., 0] - frame[..., 1]) > 50).any()  # grey would have three equal channels


def test_a_run_whose_video_cannot_be_recorded_says_so_and_finishes(monkeypatch, tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    options = SHORT["ppo"] | {"env_id": "ALE/Backgammon-v5", "capture_video": True, "runs_dir": str(tmp_path)}
    folder = SCRIPTS["ppo"].train(SCRIPTS["ppo"].Args(**options))
    told = "no video of ALE/Backgammon-v5 can be recorded (AssertionError)"  # the wrappers need a first action of NOOP
    assert f"{told}; the run finishes without it\n" in capsys.readouterr().err
    assert summary(folder)["arm"] == "l1-0.3" and not (folder / "final.mp4").exists()


@pytest.mark.parametrize(
    ("algorithm", "words", "message"),
    [
        (
            "ppo",
            ["{dqn}"],
            f"MODEL must be a saved Agent for {ENV_ID}, got {{dqn}} of a DQN run: RuntimeError: Error(s) in loading state_dict",
        ),
        ("dqn", ["{ppo}"], 'Missing key(s) in state_dict: "fc2.weight", "fc2.bias"'),
        ("ppo", ["{text}", "--env-id", ENV_ID], f"MODEL must be a saved Agent for {ENV_ID}, got {{text}}: UnpicklingError"),
        (
            "ppo",
            ["{ppo}/curves.csv"],
            f"MODEL must be a saved Agent for {ENV_ID}, got {{ppo}}/curves.csv of a PPO run: UnpicklingError",
        ),
        ("ppo", ["{ppo}/nowhere.pt"], "MODEL must be a run folder or a model file, got {ppo}/nowhere.pt: no such file"),
        ("ppo", ["{text}"], "--env-id must be given where no config.json of a run lies in "),
        (
            "ppo",
            ["{empty}"],
            "MODEL must be the folder of a run that has finished and saved its model, got {empty}: no model.pt",
        ),
        ("ppo", ["{ppo}", "--env-id", "BreakoutNoFrameskip-v4"], "MODEL must be a saved Agent for BreakoutNoFrameskip-v4, got"),
        ("ppo", ["{ppo}", "--env-id", "CartPole-v1"], "--env-id must be an Atari game, got CartPole-v1"),
        ("ppo", ["{ppo}", "--eval-episodes", "0"], "--eval-episodes must be at least 1, got 0"),
        ("ppo", ["{ppo}", "--seed", "-1"], "--seed must be at least 0, got -1"),
        ("ppo", ["{ppo}", "--prune-type", "l1", "--prune-rate", "1.0"], "--prune-rate must lie in [0, 1), got 1.0"),
        ("ppo", ["{ppo}", "--prune-rate", "0.9"], "--prune-rate must come with --prune-type l1 or random, got 0.9"),
        ("dqn", ["{dqn}", "--no-prune-bias"], "--prune-bias must come with --prune-type l1 or random, got False"),
        ("ppo", ["{ppo}", "--out", "{text}/games.csv"], "--out must be a file in a folder that can be written, got"),
        ("ppo", ["{ppo}", "--out", "{empty}"], "--out must be a file in a folder that can be written, got"),
        ("ppo", ["{ppo}", "--out", "{ppo}/eval.csv"], "--out must not name a file that the run itself wrote, got"),
        ("ppo", ["{ppo}", "--out", "{ppo}/curves.csv.gz"], "--out must not name a file that the run itself wrote, got"),
        ("ppo", ["{ppo}/model.pt", "--out", "{ppo}/config.json"], "--out must not name a file that the run itself wrote, got"),
        ("ppo", ["{ppo}", "--out", "{ppo}/source/ppo_atari_prune.py"], "--out must not name a file that the run itself wrote"),
        ("ppo", ["{ppo}", "--out", "{ppo}/events.out.tfevents.1"], "--out must not name a file that the run itself wrote, got"),
        ("ppo", ["{ppo}", "--out", "{ppo}/final.csv", "--capture-video"], "--out must not name a file that the run itself"),
        ("ppo", ["{agent}", "--env-id", ENV_ID, "--out", "{agent}"], "--out must not name the model itself, got"),
        ("ppo", ["{alone}", "--env-id", ENV_ID, "--out", "{alone}/model.pt"], "--out must not name the model itself, got"),
        ("ppo", ["{other}", "--env-id", ENV_ID, "--out", "{alone}/model.pt"], "--out must not name the model itself, got"),
        ("ppo", ["{ppo}", "--out", ".", "--capture-video"], "--out must be a file in a folder that can be written, got ."),
        ("ppo", ["{ppo}", "--out", "games.mp4", "--capture-video"], "--out must not end in .mp4, as the video does, got"),
        ("dqn", ["{dqn}", "--epsilon", "1.5"], "--epsilon must lie in [0, 1], got 1.5"),
        ("dqn", ["{dqn}", "--epsilon", "0.5", "--greedy"], "--epsilon must come without --greedy, got 0.5"),
    ],
)
def test_what_is_no_model_or_no_value_is_one_line_and_exit_2(
    algorithm, words, message, small_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("not a network")
    places = {a: small_run(a, prune_type="none") for a in NETWORKS} | {n: tmp_path / n for n in ("empty", "text", "alone")}
    places["alone"].mkdir()
    shutil.copy(places["ppo"] / "model.pt", places["alone"])
    places["other"] = shutil.copy(places["ppo"] / "model_packed.npz", places["alone"] / "model_packed.npz")
    places["agent"] = shutil.copy(places["ppo"] / "model.pt", tmp_path / "agent.pt")

    def files():
        found = [path for place in (*places.values(), tmp_path) for path in place.rglob("*")]
        return {path: path.stat().st_mtime_ns for path in found if path.name != ".lock"}

    there = files()
    line = refused(algorithm, monkeypatch, capsys, *(word.format(**places) for word in words))
    assert message.format(**places) in line and files() == there
