"""Sampled stacks are what the environment showed: never over the start of a game, the write head, or into another game."""

import numpy as np
import pytest
import torch

from dqn_atari_prune import AtariGames, ReplayBuffer, Step, crossings

ENV_ID = "SpaceInvadersNoFrameskip-v4"


def advance(buffer: ReplayBuffer, actions: np.ndarray, step: Step) -> None:
    """What the training script does after each step."""
    sent = {name: torch.from_numpy(array) for name, array in buffer.advance(actions, step).items()}
    buffer.store(sent["obs"], sent["facts"], sent["places"])


def sample(buffer: ReplayBuffer, batch_size: int, generator=None):
    return buffer.sample(batch_size, torch.from_numpy(buffer.window()), generator)


@pytest.fixture
def every_index(monkeypatch):
    """Draws 0, 1, 2, ... in place of random numbers, so that every transition that may be sampled is."""
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.arange(*size))


@pytest.mark.parametrize(("num_envs", "slots", "max_frames"), [(1, 61, 900), (8, 37, 1100)])
def test_sampled_stacks_equal_what_the_environment_showed_over_a_ring_that_wraps(num_envs, slots, max_frames):
    games = AtariGames(ENV_ID, num_envs, seed=3, num_threads=1, max_frames=max_frames)
    buffer = ReplayBuffer(slots * num_envs + num_envs // 2, num_envs, "cpu")
    assert buffer.places == slots * num_envs
    buffer.start(torch.from_numpy(games.obs))
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    history, sampled, truncated, ended, wrapped = [], 0, 0, 0, 0
    for _ in range(50_000 // num_envs):
        obs, actions = games.obs, rng.integers(0, games.num_actions, num_envs)
        games.send(actions)
        step = games.receive()
        advance(buffer, actions, step)
        wrapped += buffer.head == 0
        history = history[-(slots - 2) :]
        history.append((obs, actions, step))
        truncated += int(step.truncations.sum())
        ended += len(step.finished)
        if rng.random() < 0.05:
            shown: dict[tuple, list] = {}  # the transitions of the ring by (obs, action, reward, termination)
            for o, a, s in history:
                for k in range(num_envs):
                    if not s.truncations[k]:
                        key = (o[k].tobytes(), int(a[k]), int(np.sign(s.rewards[k])), bool(s.terminations[k]))
                        shown.setdefault(key, []).append((s.obs[k].tobytes(), bool(s.game_starts[k])))
            o, a, r, n, d = sample(buffer, 32, generator)
            assert o.is_contiguous(memory_format=torch.channels_last) and n.is_contiguous(memory_format=torch.channels_last)
            for i in range(32):
                key = (o[i].numpy().tobytes(), int(a[i]), int(r[i]), bool(d[i]))
                assert key in shown
                assert any(start or n[i].numpy().tobytes() == after for after, start in shown[key])
                sampled += 1
    assert sampled > 5_000 // num_envs and wrapped > 50_000 // num_envs // slots - 2 and ended > 10 and truncated > 5


def scripted(buffer: ReplayBuffer, steps: int, truncate_at=(), start_at=()):
    """Feed one game whose frame at time t is filled with t % 256 and whose action is t % 6."""
    frame = lambda t: np.full((1, 4, 84, 84), t % 256, np.uint8)  # noqa: E731
    buffer.start(torch.from_numpy(frame(0)))
    no, yes = np.array([False]), np.array([True])
    for t in range(steps):
        cut, new = (yes if t in truncate_at else no), (yes if t + 1 in start_at else no)
        advance(buffer, np.array([t % 6]), Step(frame(t + 1), np.array([5 - t]), no, cut, new, None, []))


def test_every_whole_transition_of_a_full_ring_but_the_four_oldest_is_drawn_equally_often(every_index):
    buffer = ReplayBuffer(16, 1, "cpu")
    scripted(buffer, 40)  # 15 whole transitions remain, of times 25 to 39
    obs, actions, rewards, next_obs, _ = sample(buffer, 33)
    times = obs[:, 3, 0, 0].tolist()
    assert sorted(times) == sorted(list(range(29, 40)) * 3)
    assert actions.tolist() == [t % 6 for t in times] and rewards.tolist() == [-1.0] * 33  # 5 - t clipped
    assert obs[:, 0, 0, 0].tolist() == [t - 3 for t in times] and next_obs[:, 3, 0, 0].tolist() == [t + 1 for t in times]


def test_a_truncated_transition_is_never_sampled_and_stacks_stop_at_the_start_of_a_game(every_index):
    buffer = ReplayBuffer(32, 1, "cpu")
    scripted(buffer, 20, truncate_at={9}, start_at={10})
    obs, *_, next_obs, _ = sample(buffer, 20)
    assert obs[:, 3, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert obs[10, :, 0, 0].tolist() == [0, 0, 0, 10] and obs[12, :, 0, 0].tolist() == [0, 10, 11, 12]
    assert next_obs[10, :, 0, 0].tolist() == [0, 0, 10, 11]


@pytest.mark.parametrize("steps", [10, 40], ids=["not yet full", "wrapped"])
def test_a_buffer_that_was_saved_and_loaded_samples_the_same(steps):
    buffer, again = ReplayBuffer(16, 1, "cpu"), ReplayBuffer(16, 1, "cpu")
    scripted(buffer, steps)
    again.load_state_dict(buffer.state_dict())
    one, two = (sample(b, 64, torch.Generator().manual_seed(0)) for b in (buffer, again))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and len({*one[0][:, 3, 0, 0].tolist()}) > 5


def test_a_frame_costs_7056_bytes_and_a_transition_at_most_16_more():
    buffer = ReplayBuffer(8000, 8, "cpu")
    tensors = [t for t in vars(buffer).values() if isinstance(t, torch.Tensor)]
    assert sum(t.numel() * t.element_size() for t in tensors) / 8000 - 84 * 84 <= 16


def test_updates_are_due_at_every_multiple_that_a_step_of_all_games_crosses():
    assert [crossings(8 * k, 8 * k + 8, 12) for k in range(3)] == [0, 1, 1]  # 12 lies in (8, 16], 24 in (16, 24]
    assert sum(crossings(3 * k, 3 * k + 3, 4) for k in range(400)) == 300
