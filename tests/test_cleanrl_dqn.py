"""DQN follows a loop written as CleanRL's dqn_atari.py is: stacks in a dictionary, a plain network, an unfused Adam.

The games, the first weights and the draws (actions, indices of minibatches) are those of our run. What differs from CleanRL is
differences 2 to 6 of docs/differences.md.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn as nn

import dqn_atari_prune as dqn
from prune_utils.basics import derive_seed, seeded
from prune_utils.games import AtariGames
from tests.conftest import SMALL, weights


def plain(network: dqn.QNetwork) -> nn.Sequential:
    """CleanRL's network, from scaled frames to values, with the same weights."""
    hidden, num_actions = network.fc1.out_features, network.fc2.out_features
    body = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    same = nn.Sequential(*body, nn.Flatten(), nn.Linear(3136, hidden), nn.ReLU(), nn.Linear(hidden, num_actions))
    for p, ours in zip(same.parameters(), network.parameters(), strict=True):
        p.data.copy_(ours.data)
    return same


def reference(args: dqn.Args, make_games: Callable, sent: list[np.ndarray]) -> dict:
    """The network that the loop ends with, loss and mean Q value of the last update of each step, and what happened."""
    games = make_games(args.env_id, args.num_envs, derive_seed(args.seed, "games"), 1)
    with seeded(derive_seed(args.seed, "network")):
        q_network = plain(dqn.QNetwork(games.num_actions, args.widths))
    target_network, start = copy.deepcopy(q_network), copy.deepcopy(q_network)
    optimizer = torch.optim.Adam(q_network.parameters(), lr=args.learning_rate, foreach=False, fused=False)
    actions_rng, minibatch_rng = (
        torch.Generator().manual_seed(derive_seed(args.seed, purpose)) for purpose in ("actions", "minibatches")
    )
    replay, kept = {}, args.buffer_size // args.num_envs - 1  # transitions by number, and how many of each game are whole
    told, updates, seen = [], 0, {"terminated": 0, "truncated": 0, "wraps": 0}

    def transition() -> tuple:
        """A uniform one, of those that our ring can show; a truncated one gives way to the one before it (4 and 5)."""
        oldest = max(0, len(replay) - kept * args.num_envs)
        oldest += 4 * args.num_envs * (len(replay) - oldest == kept * args.num_envs)
        draw = int(torch.randint(2**62, (1,), generator=minibatch_rng))
        number = oldest + draw % (len(replay) - oldest)
        seen["terminated"] += replay[number][4]
        seen["truncated"] += replay[number][5]
        return replay[number - args.num_envs if replay[number][5] else number]

    for global_step in range(0, args.num_iterations * args.num_envs, args.num_envs):
        # act: the run's actions, which are random where this loop explores and as good as the best one where it doesn't
        slope = (args.end_e - args.start_e) / (args.exploration_fraction * args.total_timesteps)
        epsilon = max(slope * global_step + args.start_e, args.end_e)
        explores = torch.rand(args.num_envs, generator=actions_rng) < epsilon
        random_actions = torch.randint(games.num_actions, (args.num_envs,), generator=actions_rng)
        actions = torch.from_numpy(sent[global_step // args.num_envs])
        with torch.no_grad():
            q_values = q_network(torch.from_numpy(games.obs).float() / 255.0)
        behind = q_values.max(1).values - q_values.gather(1, actions[:, None])[:, 0]
        assert torch.equal(actions[explores], random_actions[explores]) and not (behind[~explores] > 1e-5).any()

        # learn what is due in this step of all games, before the step is stored (2 and 3)
        due = [step for step in range(global_step + 1, global_step + args.num_envs + 1) if step > args.learning_starts]
        due_updates = sum(step % args.train_frequency == 0 for step in due)
        for _ in range(due_updates):
            columns = zip(*(transition() for _ in range(args.batch_size)), strict=True)
            obs, next_obs, taken, rewards, terminated, _ = map(np.stack, columns)
            with torch.no_grad():
                best = target_network(torch.from_numpy(next_obs).float() / 255.0).max(1).values
                target = torch.from_numpy(rewards) + args.gamma * best * (1 - torch.from_numpy(terminated).float())
            q_values = q_network(torch.from_numpy(obs).float() / 255.0)
            old_values = q_values[torch.arange(args.batch_size), torch.from_numpy(taken)]
            loss = nn.functional.mse_loss(old_values, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        updates += due_updates
        told += [loss.item(), old_values.mean().item()] if due_updates else []
        if any(step % args.target_network_frequency == 0 for step in due):
            target_network.load_state_dict(q_network.state_dict())

        # step the games and store whole stacks
        obs = games.obs.copy()
        games.send(actions.numpy())
        step = games.receive()
        rewards = np.sign(step.rewards).astype(np.float32)
        for k in range(args.num_envs):
            ends = (bool(step.terminations[k]), bool(step.truncations[k]))
            replay[len(replay)] = (obs[k], step.obs[k].copy(), actions[k].item(), rewards[k], *ends)
        seen["wraps"] = len(replay) // (args.num_envs * (kept + 1))
    return {"network": q_network, "start": start, "told": told, "updates": updates} | seen


@pytest.mark.parametrize(("num_envs", "learning_starts", "buffer_size", "max_frames"), [(1, 152, 80, 1000), (8, 400, 160, 240)])
def test_100_updates_follow_cleanrls_on_the_same_draws(
    num_envs, learning_starts, buffer_size, max_frames, monkeypatch, tmp_path
):
    """With a ring that wraps, a lost life and truncated games among the samples, and syncs of the target network."""
    args = dqn.Args(
        **SMALL["dqn"]
        | {"num_envs": num_envs, "learning_starts": learning_starts, "total_timesteps": learning_starts + 400}
        | {"buffer_size": buffer_size, "target_network_frequency": 50, "exploration_fraction": 0.7, "eval_episodes": 0}
        | {"width": 1.0, "prune_type": "none", "prune_at": 1.0}
        | {"runs_dir": str(tmp_path), "checkpoint_minutes": 0, "cuda": False}
    )
    make_games, sent, told = partial(AtariGames, max_frames=max_frames), [], []
    send, update = AtariGames.send, dqn.update

    def send_and_keep(games, actions):
        sent.append(actions.copy())
        send(games, actions)

    def update_and_keep(*arguments):
        losses = update(*arguments)
        told.extend(losses.tolist())
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(dqn, "AtariGames", make_games)
        patch.setattr(AtariGames, "send", send_and_keep)
        patch.setattr(dqn, "update", update_and_keep)
        ours = weights(dqn.train(args))
    found = reference(args, make_games, sent)

    assert found["updates"] == 100 and found["wraps"] >= 2 and found["truncated"] > 0
    assert found["terminated"] > 0 or num_envs == 8  # whose games are truncated before they lose a life
    assert told == pytest.approx(found["told"], rel=1e-3, abs=1e-6)
    for (name, t), expected, start in zip(ours.items(), *(found[n].parameters() for n in ("network", "start")), strict=True):
        assert (t - expected).norm() <= 1e-5 * expected.norm(), name
        assert (t - start).norm() > 1e-3 * start.norm(), name
