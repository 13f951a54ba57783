"""Sampled stacks are what the environment showed: never over the start of a game, the write head, or into another game."""

import numpy as np
import pytest
import torch

from dqn_atari_prune import ReplayBuffer, crossings
from prune_utils.games import AtariGames, Step

ENV_ID = "SpaceInvadersNoFrameskip-v4"


def advance(buffer: ReplayBuffer, actions: np.ndarray, step: Step) -> None:
    """What the training script does after each step."""
    sent = {name: torch.from_numpy(array) for name, array in buffer.advance(actions, step).items()}
    buffer.store(sent["obs"], sent["metadata"], sent["slots"])


def sample(buffer: ReplayBuffer, batch_size: int, generator=None):
    return buffer.sample(batch_size, torch.from_numpy(buffer.window()), generator)


@pytest.fixture
def every_index(monkeypatch):
    """Draws 0, 1, 2, ... in place of random numbers, so that every transition that may be sampled is."""
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.arange(*size))


@pytest.mark.parametrize(("num_envs", "slots", "max_frames"), [(1, 61, 900), (8, 37, 1100)])
def test_sampled_stacks_equal_what_the_environment_showed_over_a_ring_that_wraps(num_envs, slots, max_frames):
    games = AtariGames(ENV_ID, num_envs, seed=3, num_threads=1, max_frames=max_frames)
    buffer = ReplayBuffer(slots * num_envs + num_envs // 2, torch.from_numpy(games.obs), "cpu")
    assert buffer.slots == slots * num_envs
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    history, sampled, truncated, ended, wrapped = [], 0, 0, 0, 0
    for _ in range(8_000 // num_envs):
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
    assert sampled > 2_000 // num_envs and wrapped > 8_000 // num_envs // slots - 2 and ended > 4 and truncated > 2


def scripted(slots: int, steps: int, truncate_at=(), start_at=()) -> ReplayBuffer:
    """A buffer fed with one game whose frame at time t is filled with t % 256 and whose action is t % 6."""
    frame = lambda t: np.full((1, 4, 84, 84), t % 256, np.uint8)  # noqa: E731
    buffer = ReplayBuffer(slots, torch.from_numpy(frame(0)), "cpu")
    no, yes = np.array([False]), np.array([True])
    for t in range(steps):
        cut, new = (yes if t in truncate_at else no), (yes if t + 1 in start_at else no)
        advance(buffer, np.array([t % 6]), Step(frame(t + 1), np.array([5 - t]), no, cut, new, None, []))
    return buffer


def test_every_whole_transition_of_a_full_ring_but_the_four_oldest_is_drawn_equally_often(every_index):
    buffer = scripted(16, 40)  # 15 whole transitions remain, of times 25 to 39
    obs, actions, rewards, next_obs, _ = sample(buffer, 33)
    times = obs[:, 3, 0, 0].tolist()
    assert sorted(times) == sorted(list(range(29, 40)) * 3)
    assert actions.tolist() == [t % 6 for t in times] and rewards.tolist() == [-1.0] * 33  # 5 - t clipped
    assert obs[:, 0, 0, 0].tolist() == [t - 3 for t in times] and next_obs[:, 3, 0, 0].tolist() == [t + 1 for t in times]


def test_a_truncated_transition_is_never_sampled_and_stacks_stop_at_the_start_of_a_game(every_index):
    buffer = scripted(32, 20, truncate_at={9}, start_at={10})
    obs, *_, next_obs, _ = sample(buffer, 20)
    assert obs[:, 3, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert obs[10, :, 0, 0].tolist() == [0, 0, 0, 10] and obs[12, :, 0, 0].tolist() == [0, 10, 11, 12]
    assert next_obs[10, :, 0, 0].tolist() == [0, 0, 10, 11]


def play(buffer: ReplayBuffer, games: AtariGames, rng: np.random.Generator, steps: int) -> None:
    for _ in range(steps):
        actions = rng.integers(0, games.num_actions, games.num_envs)
        games.send(actions)
        advance(buffer, actions, games.receive())


@pytest.mark.parametrize(
    ("steps", "slots"), [(0, 40), (25, 40), (110, 40), (60, 9000)], ids=["only begun", "not yet full", "wrapped", "two blocks"]
)
def test_a_buffer_that_was_saved_and_loaded_is_the_same_and_goes_on_alike(steps, slots, tmp_path):
    num_envs = 3 if slots == 40 else 1
    games, rng = AtariGames(ENV_ID, num_envs, seed=3, num_threads=1, max_frames=240), np.random.default_rng(0)
    buffers = [ReplayBuffer(slots * num_envs, torch.from_numpy(games.obs), "cpu") for _ in range(2)]
    play(buffers[0], games, rng, steps)
    if slots == 9000:  # more frames per game than are compressed at once
        buffers[0].head = buffers[0].size = 8000
        buffers[0].frames.random_(generator=torch.Generator().manual_seed(0))
    file = tmp_path / "buffer.pt"
    torch.save(buffers[0].state_dict(), file)
    buffers[1].frames.fill_(7)  # what a ring held before does not matter
    buffers[1].load_state_dict(torch.load(file, weights_only=True))
    for moment in range(2):
        one, two = buffers
        used = one.slots if one.size == one.slots - num_envs else one.head + num_envs
        assert (one.head, one.size, one.ages.tolist()) == (two.head, two.size, two.ages.tolist())
        assert one.ages.dtype == two.ages.dtype == np.int8 and one.window().tolist() == two.window().tolist()
        assert torch.equal(one.frames[:used], two.frames[:used]) and torch.equal(one.metadata[:used], two.metadata[:used])
        if one.size > 8 * num_envs:
            batches = [sample(buffer, 64, torch.Generator().manual_seed(0)) for buffer in buffers]
            assert all(map(torch.equal, *batches)) and len({obs.numpy().tobytes() for obs in batches[0][0]}) > 5
        if moment == 0:
            for buffer in buffers:  # past the wrap too
                again = AtariGames(ENV_ID, num_envs, seed=4, num_threads=1, max_frames=240)
                play(buffer, again, np.random.default_rng(1), 50)


def test_frames_of_a_game_are_compressed_to_less_than_a_twentieth():
    games = AtariGames(ENV_ID, 2, seed=3, num_threads=1)
    buffer = ReplayBuffer(600, torch.from_numpy(games.obs), "cpu")
    play(buffer, games, np.random.default_rng(0), 400)
    saved = sum(len(block) for game in buffer.state_dict()["frames"] for block in game)
    assert saved < 600 * 84 * 84 / 20


def test_a_frame_costs_7056_bytes_and_a_transition_at_most_16_more():
    buffer = ReplayBuffer(8000, torch.zeros(8, 4, 84, 84, dtype=torch.uint8), "cpu")
    tensors = [t for t in vars(buffer).values() if isinstance(t, torch.Tensor)]
    assert sum(t.numel() * t.element_size() for t in tensors) / 8000 - 84 * 84 <= 16


def test_updates_are_due_at_every_multiple_that_a_step_of_all_games_crosses():
    assert [crossings(8 * k, 8 * k + 8, 12) for k in range(3)] == [0, 1, 1]  # 12 lies in (8, 16], 24 in (16, 24]
    assert sum(crossings(3 * k, 3 * k + 3, 4) for k in range(400)) == 300
