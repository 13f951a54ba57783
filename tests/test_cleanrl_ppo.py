"""PPO learns from its rollouts what a loop written as CleanRL's ppo_atari.py would, on the games and actions of our run."""

import copy

import numpy as np
import pytest
import torch

import ppo_atari_prune as ppo
from prune_utils.basics import derive_seed
from prune_utils.games import AtariGames
from tests.conftest import SHORT, rows

STEPS = 8


def expected_rollout(network: ppo.Agent, args: ppo.Args, sent: list, played: list) -> list[torch.Tensor]:
    """Actions, log-probabilities, advantages, returns and values of a rollout; `sent` holds observations and actions."""

    def look(obs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return network(torch.from_numpy(obs))

    logits, values = (torch.stack(x) for x in zip(*(look(obs) for obs, _ in sent), strict=True))
    actions = torch.stack([torch.from_numpy(taken) for _, taken in sent])
    next_values = [*values[1:], look(played[-1].obs)[1]]
    advantages, following = torch.zeros(values.shape), 0.0
    for t in reversed(range(STEPS)):
        lost, truncated = torch.from_numpy(played[t].terminations), torch.from_numpy(played[t].truncations)
        # a time limit is no end of the game (difference 5): its step is paid with the value of the last frames
        reward = torch.from_numpy(np.sign(played[t].rewards)) + args.gamma * look(played[t].final_obs)[1] * (truncated & ~lost)
        nonterminal = 1.0 - (lost | truncated).float()
        delta = reward + args.gamma * next_values[t] * nonterminal - values[t]
        advantages[t] = following = delta + args.gamma * args.gae_lambda * nonterminal * following
    logprobs = torch.distributions.Categorical(logits=logits).log_prob(actions)
    return [x.flatten() for x in (actions, logprobs, advantages, advantages + values, values)]


@pytest.mark.parametrize("target_kl", [None, 1e-9])
def test_ppo_learns_from_its_rollouts_what_cleanrl_does(target_kl, monkeypatch, tmp_path):
    args = ppo.Args(
        **SHORT["ppo"]
        | {"num_steps": STEPS, "update_epochs": 2, "num_minibatches": 2, "learning_rate": 0.0025, "target_kl": target_kl}
        | {"width": 1.0, "prune_type": "none", "prune_at": 1.0, "runs_dir": str(tmp_path), "cuda": False}
    )
    rng, sent, played, learned, orders = np.random.default_rng(0), [], [], [], []
    send, receive, update = AtariGames.send, AtariGames.receive, ppo.update

    def send_and_keep(games, actions):
        sent.append((games.obs.copy(), actions.copy()))
        send(games, actions)

    def scripted(games):
        """The games' frames, with rewards, lost lives and time limits that are seldom in so short a run."""
        step = receive(games)
        lost, truncated = rng.random((2, len(step.obs))) < 0.2
        rewards, final_obs = rng.choice([-30.0, 0.0, 5.0], len(lost)), rng.integers(256, size=step.obs.shape, dtype=np.uint8)
        step = step._replace(rewards=rewards, terminations=lost, truncations=truncated, final_obs=final_obs)
        played.append(step._replace(obs=step.obs.copy()))
        return step

    def update_and_keep(agent, fast_agent, optimizer, masks, minibatch, args):
        group = optimizer.param_groups[0]
        learned.append(([x.clone() for x in minibatch], copy.deepcopy(agent), float(group["lr"]), group["eps"]))
        return update(agent, fast_agent, optimizer, masks, minibatch, args)

    def in_order(n, generator, device):
        orders.append(generator)
        return torch.arange(n)

    monkeypatch.setattr(AtariGames, "send", send_and_keep)
    monkeypatch.setattr(AtariGames, "receive", scripted)
    monkeypatch.setattr(ppo, "update", update_and_keep)
    monkeypatch.setattr(torch, "randperm", in_order)
    folder = ppo.train(args)

    epochs = 1 if target_kl else 2  # a KL divergence above the target ends the epochs of a rollout
    assert {generator.initial_seed() for generator in orders} == {derive_seed(1, "minibatches")}
    assert len(orders) == 10 * epochs and len(learned) == 10 * epochs * 2
    explained = [float(row["value"]) for row in rows(folder / "curves.csv") if row["tag"] == "losses/explained_variance"]
    for k in range(10):
        steps, own = slice(STEPS * k, STEPS * (k + 1)), learned[2 * epochs * k : 2 * epochs * (k + 1)]
        expected = expected_rollout(own[0][1], args, sent[steps], played[steps])
        for epoch in range(epochs):
            halves = [minibatch for minibatch, *_ in own[2 * epoch : 2 * epoch + 2]]
            frames = torch.from_numpy(np.concatenate([obs for obs, _ in sent[steps]])) / 255
            torch.testing.assert_close(torch.cat([minibatch[0] for minibatch in halves]), frames, check_stride=False)
            for ours, theirs in zip([torch.cat(x) for x in zip(*halves, strict=True)][1:], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, check_dtype=False)
        returns, values = expected[3:]
        assert explained[k] == pytest.approx(float(1 - (returns - values).var() / returns.var()), rel=1e-3, abs=1e-3)
        assert all(lr == pytest.approx(0.0025 * (1 - k / 10)) and eps == 1e-5 for *_, lr, eps in own)


def test_layers_are_initialised_as_cleanrl_does_it():
    agent = ppo.Agent(6)
    gains = {agent.conv1: 2.0, agent.conv2: 2.0, agent.conv3: 2.0, agent.fc1: 2.0, agent.actor: 1e-4, agent.critic: 1.0}
    for layer, squared in gains.items():  # orthogonal rows whose norm is sqrt(2), 0.01 or 1
        weight = layer.weight.detach().flatten(1)
        torch.testing.assert_close(weight @ weight.T, squared * torch.eye(len(weight)), atol=1e-5, rtol=0)
        assert not layer.bias.any()
