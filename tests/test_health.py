"""Health of a network: each equation by hand, and what a run logs of it."""

import math
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from dqn_atari_prune import QNetwork
from ppo_atari_prune import Agent, make_policy
from prune_utils import evaluation
from prune_utils.device import true_fp32
from prune_utils.games import AtariGames
from prune_utils.health import dormant_share, effective_rank, measure
from prune_utils.run import Run
from tests.conftest import COMMON, SCRIPTS, rows, summary
from tests.test_pruning import NETWORKS, build, networks

MOMENTS = ("before_prune", "after_prune", "final")
OF_OUTPUTS = {"dqn": {"q_mean", "q_std"}, "ppo": {"entropy"}}


def test_a_unit_is_dormant_whose_mean_activation_is_at_most_tau_of_the_layers():
    # means 2, 1, 0.02, 0: the mean of the layer is 0.755, and 0.025 of that 0.0189; only the last is below
    h = torch.tensor([[4.0, 1.0, 0.04, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert dormant_share(h) == 0.25
    assert dormant_share(h, tau=0.03) == 0.5  # 0.03 * 0.755 = 0.0227
    assert dormant_share(h, tau=0.0) == 0.25  # a unit without any activation always is


def test_a_channel_is_judged_by_its_mean_over_observations_and_positions():
    h = torch.zeros(3, 2, 4, 4)
    h[0, 0, 1, 2] = 48.0  # channel 0: mean 1
    assert dormant_share(h) == 0.5
    h[:, 1] = 0.02  # mean of the layer 0.51, a share of 0.039
    assert dormant_share(h) == 0.0


def test_every_unit_of_a_dead_layer_is_dormant():
    assert dormant_share(torch.zeros(5, 7)) == 1.0


def test_the_effective_rank_counts_singular_values_up_to_99_per_cent_of_their_sum():
    turned, _ = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    # 99.1 of 100: two are enough; 98.9: three
    examples = {2: [90.0, 9.1, 0.8, 0.1], 3: [90.0, 8.9, 1.0, 0.1], 4: [1.0, 1.0, 1.0, 1.0], 1: [5.0, 0.0, 0.0, 0.0]}
    for rank, values in examples.items():
        assert effective_rank(turned @ torch.diag(torch.tensor(values))) == rank
    assert effective_rank(torch.zeros(6, 4)) == 0


@networks
def test_the_numbers_of_a_network_are_those_of_its_layers_after_the_relu(algorithm):
    network, _ = build(algorithm, hidden_size=16)
    obs = torch.randint(256, (9, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = measure(network, obs)
    assert found.keys() == {f"dormant_{name}" for name in ("conv1", "conv2", "conv3", "fc1")} | OF_OUTPUTS[algorithm] | {
        "effective_rank",
        "feature_norm",
        "weight_norm",
    }
    with torch.no_grad():
        x = obs / 255
        for name in ("conv1", "conv2", "conv3", "fc1"):
            x = torch.relu(getattr(network, name)(x.flatten(1) if name == "fc1" else x))
            assert found[f"dormant_{name}"] == pytest.approx(dormant_share(x))
        head = getattr(network, NETWORKS[algorithm].HEADS[0])(x)
    assert found["effective_rank"] == effective_rank(x)
    assert found["feature_norm"] == pytest.approx(x.pow(2).sum(1).sqrt().mean().item(), rel=1e-5)
    squares = sum(t.square().sum().item() for t in network.state_dict().values())
    assert found["weight_norm"] == pytest.approx(math.sqrt(squares), rel=1e-5)
    if algorithm == "dqn":
        assert found["q_mean"] == pytest.approx(head.mean().item(), rel=1e-4, abs=1e-6)
        assert found["q_std"] == pytest.approx(head.std().item(), rel=1e-4)
    else:
        p = head.softmax(1)
        assert found["entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-5)


def test_norms_q_values_and_entropy_worked_by_hand():
    network, _ = build("dqn", hidden_size=2)
    for p in network.parameters():
        p.data.zero_()
    network.fc1.bias.data.copy_(torch.tensor([3.0, 4.0]))  # every feature vector is (3, 4), and all other weights are 0
    found = measure(network, torch.zeros(3, 4, 84, 84, dtype=torch.uint8))
    assert found["feature_norm"] == 5 and found["weight_norm"] == 5 and found["effective_rank"] == 1
    found = QNetwork(2).output_health(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))  # squared deviations 9, 1, 1, 9: 20 / 3
    assert found["q_mean"] == 4 and found["q_std"].item() == pytest.approx(math.sqrt(20 / 3))
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [50.0, 0.0, 0.0, 0.0]])  # uniform: ln 4; certain: 0
    assert Agent(4).output_health((logits, None))["entropy"].item() == pytest.approx(math.log(4) / 2)


@pytest.mark.parametrize("algorithm", NETWORKS)
def test_a_network_that_has_diverged_is_one_line(algorithm):
    network, _ = build(algorithm, hidden_size=4)
    network.fc1.bias.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"not finite .*: the training has diverged"):
        measure(network, torch.zeros(2, 4, 84, 84, dtype=torch.uint8))


def test_a_pruned_unit_is_dormant():
    network, _ = build("dqn", hidden_size=16)
    with torch.no_grad():
        network.fc1.weight[:4], network.fc1.bias[:4] = 0.0, 0.0
    obs = torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert measure(network, obs)["dormant_fc1"] >= 4 / 16


def test_observations_are_of_two_games_from_the_same_starts_and_of_the_next_ones_where_a_game_ends(monkeypatch):
    game = "SpaceInvadersNoFrameskip-v4"
    still, firing = (evaluation.observe(lambda obs, a=a: torch.full((2,), a), game, 40, seed=7) for a in (0, 1))
    assert still.shape == (80, 4, 84, 84) and torch.equal(still[:2], firing[:2]) and not torch.equal(still, firing)
    assert not torch.equal(still[0], still[1])
    monkeypatch.setattr(evaluation, "AtariGames", partial(AtariGames, max_frames=120))  # a game has 30 steps at most
    short = evaluation.observe(lambda obs: torch.zeros(2, dtype=torch.int64), game, 40, seed=7).unflatten(0, (40, 2))
    starts = [step for step in range(40) if not short[step, 0, :3].any()]  # of a new game there is one frame
    assert len(starts) == 2 and starts[0] == 0 and 0 < starts[1] <= 30


@pytest.mark.parametrize(("total_timesteps", "steps"), [(10_000_000, 250), (2_000_000, 250), (1_000_000, 125), (1000, 1)])
def test_a_shorter_run_measures_on_fewer_observations(total_timesteps, steps, monkeypatch):
    taken = []
    monkeypatch.setattr(evaluation, "observe", lambda policy, game, steps, *_: taken.append(steps) or torch.zeros(2, 4, 84, 84))
    args = SimpleNamespace(total_timesteps=total_timesteps, env_id="")
    run = SimpleNamespace(args=args, seed=lambda purpose: 1, num_threads=1, device=torch.device("cpu"))
    Run.measure_health(run, build("ppo", hidden_size=4)[0], make_policy)
    assert taken == [steps]


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_run_logs_its_health_at_the_three_moments(algorithm, small_run):
    folder = small_run(algorithm, prune_type="l1", prune_rate=0.5)
    scores, curves = summary(folder)["eval"], rows(folder / "curves.csv")
    logged = [float(row["value"]) for row in curves if row["tag"] == "health/effective_rank"]
    assert logged == [scores[moment]["health"]["effective_rank"] for moment in MOMENTS]
    assert all(scores[moment]["health"].keys() >= OF_OUTPUTS[algorithm] for moment in MOMENTS)
    assert scores["after_prune"]["health"]["weight_norm"] < scores["before_prune"]["health"]["weight_norm"]


@pytest.mark.parametrize("algorithm", SCRIPTS)
def test_a_longer_run_logs_it_every_tenth_too_and_trains_the_same_without(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr("prune_utils.run.HEALTH_STEPS", 400)
    now, measure_health, spent = time.perf_counter, Run.measure_health, []
    monkeypatch.setattr(time, "perf_counter", lambda: now() + 100 * len(spent))  # each measurement takes 100 s
    monkeypatch.setattr(Run, "measure_health", lambda *args: spent.append(args) or measure_health(*args))
    script = SCRIPTS[algorithm]
    options = COMMON | {"total_timesteps": 400}
    options |= {"learning_starts": 100, "buffer_size": 100} if algorithm == "dqn" else {"num_steps": 20, "update_epochs": 1}
    folders = [
        script.train(script.Args(**options | {"runs_dir": str(tmp_path), "run_name": f"games{games}", "eval_episodes": games}))
        for games in (1, 0)
    ]
    steps = [int(row["global_step"]) for row in rows(folders[0] / "curves.csv") if row["tag"] == "health/weight_norm"]
    assert steps == [40, 80, 120, 160, 200, 200, 240, 280, 320, 360, 400]
    assert (folders[0] / "model.pt").read_bytes() == (folders[1] / "model.pt").read_bytes()
    assert "health/" not in (folders[1] / "curves.csv").read_text()
    if algorithm == "ppo":  # every rollout ends at a tenth: its lap counts, and what is measured there does not
        assert all(summary(folder)["time"]["agent_steps_per_second_after_cut"] > 1 for folder in folders)


def test_tf32_is_off_while_health_is_measured():
    """Of the switches alone: on a CPU they change nothing."""
    matmul, cudnn, seen = torch.backends.cuda.matmul, torch.backends.cudnn, []
    network, _ = build("ppo")
    network.output_health = lambda outputs: seen.append((matmul.allow_tf32, cudnn.allow_tf32)) or {}
    with true_fp32():  # afterwards they are as before
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        measure(network, torch.zeros(2, 4, 84, 84, dtype=torch.uint8))
    assert seen == [(False, False)]
