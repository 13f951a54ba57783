"""What the games show, against wrappers that others wrote; what differs from them is stated here and in the README."""

import cv2
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv, WarpFrame

from checks.train_on_wrappers import WrappedGames
from prune_utils.games import AtariGames, atari_spec
from prune_utils.log import Log
from tests.conftest import rows

ENV_ID = "SpaceInvadersNoFrameskip-v4"


class SameStart(gym.Wrapper):
    """The vector environment's start of a game: FIRE for one frame if there is such an action, then no-ops."""

    def __init__(self, env: gym.Env, frames: int):
        super().__init__(env)
        self.frames = frames

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        fires = "FIRE" in self.unwrapped.get_action_meanings()
        for action in [1] * fires + [0] * (self.frames - fires):
            obs, *_, info = self.env.step(action)
        return obs, info


class Grey(gym.ObservationWrapper):
    """Grey levels in all three channels, so that frames are grey before two of them are pooled, as in the emulator."""

    def observation(self, obs):
        return np.repeat(cv2.cvtColor(obs, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def wrappers(env_id: str, frames: int, grey_first: bool) -> gym.Env:
    env = SameStart(gym.make(env_id), frames)
    env = WarpFrame(MaxAndSkipEnv(Grey(env) if grey_first else env, skip=4))
    return gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")


def compare(env_id: str, seed: int, grey_first: bool) -> tuple[int, int, int]:
    """Play one game in both with the same random actions: steps, stacks that differ, lives lost.

    Rewards, lost lives and the end of the game must agree.
    """
    games, rng = AtariGames(env_id, 1, seed, num_threads=1), np.random.default_rng(0)
    env = wrappers(env_id, int(games.frame_numbers[0]), grey_first)
    obs, info = env.reset(seed=0)
    different, lost = int(not np.array_equal(obs[..., 0], games.obs[0])), 0
    for t in range(2000):
        actions = rng.integers(0, games.num_actions, 1)
        games.send(actions)
        step, lives = games.receive(), info["lives"]
        obs, reward, terminated, _, info = env.step(int(actions[0]))
        assert reward == step.rewards[0] and terminated == step.game_starts[0] == bool(step.finished)
        assert step.terminations[0] == (info["lives"] < lives or terminated)
        lost += int(step.terminations[0])
        if terminated:
            return t + 1, different, lost
        different += not np.array_equal(obs[..., 0], step.obs[0])
    return t + 1, different, lost


@pytest.mark.parametrize("env_id", [ENV_ID, "BreakoutNoFrameskip-v4", "MsPacmanNoFrameskip-v4"])
@pytest.mark.parametrize("seed", [2, 5])
def test_stacks_rewards_and_lives_are_those_of_the_stable_baselines3_wrappers_on_frames_that_are_grey_before_they_are_pooled(
    env_id, seed
):
    steps, different, lost = compare(env_id, seed, grey_first=True)
    assert different == 0 and steps > 100
    assert lost == (5 if env_id.startswith("Breakout") else 3)


def test_colours_pooled_before_they_are_grey_show_other_frames_seldom_in_space_invaders_and_often_in_ms_pacman():
    steps, different, _ = map(sum, zip(*(compare(ENV_ID, seed, grey_first=False) for seed in (0, 2)), strict=True))
    assert 0 < different < 0.03 * steps
    steps, different, _ = compare("MsPacmanNoFrameskip-v4", 2, grey_first=False)
    assert different > 0.5 * steps


def test_a_game_starts_with_one_frame_of_fire_and_0_to_28_no_ops_and_a_stack_padded_with_zeros():
    games, frames = AtariGames(ENV_ID, 2, seed=0, num_threads=1), set()
    for _ in range(150):
        games.reset(np.ones(2, bool), seeded=False)
        frames |= set(games.frame_numbers.tolist())
        assert not games.obs[:, :3].any() and games.obs[:, 3].any(axis=(1, 2)).all()
    assert frames == set(range(1, 30))
    assert games.obs.shape == (2, 4, 84, 84) and games.obs.dtype == np.uint8


def play(games: AtariGames, steps: int, seed: int = 0) -> list:
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        games.send(rng.integers(0, games.num_actions, games.num_envs))
        seen.append(games.receive())
    return seen


@pytest.mark.parametrize("environment", [AtariGames, WrappedGames])
def test_the_score_of_a_game_is_the_unclipped_sum_over_all_its_lives_and_each_row_a_real_step(environment):
    games, wrapped = environment(ENV_ID, 4, seed=1, num_threads=1), environment is WrappedGames
    totals, steps, lost, finished = np.zeros(4), np.zeros(4, int), np.zeros(4, int), 0
    largest = 0
    for step in play(games, 1500):
        totals, steps, lost = totals + step.rewards, steps + 1, lost + step.terminations
        largest = max(largest, int(step.rewards.max()))
        assert step.game_starts.tolist() == [k in {game.env for game in step.finished} for k in range(4)]
        for game in step.finished:
            k = game.env
            assert (game.episodic_return, game.episodic_length, lost[k]) == (totals[k], steps[k], 3) and not game.truncated
            totals[k], steps[k], lost[k] = 0, 0, 0
            finished += 1
        # the first stack of the next game; of the next life too in the wrappers, which fill the stack with its newest frame
        for k in np.flatnonzero(step.terminations if wrapped else step.game_starts):
            assert (step.obs[k, :3] == (step.obs[k, 3] if wrapped else 0)).all()
    assert finished >= 8 and largest >= 20


def test_at_the_frame_limit_a_game_is_truncated_and_shows_its_own_last_frames_not_those_of_the_next_game():
    short, long = (AtariGames(ENV_ID, 8, seed=0, num_threads=1, max_frames=n) for n in (400, 108_000))
    truncated = 0
    for t, (step, whole) in enumerate(zip(play(short, 100), play(long, 100), strict=True)):
        for game in step.finished:
            k, truncated = game.env, truncated + 1
            assert (t, game.truncated, game.episodic_length) == (99, True, 100)  # 400 frames after the start of the game
            assert (step.truncations[k], step.terminations[k]) == (True, whole.terminations[k])
            assert np.array_equal(step.final_obs[k, :3], whole.obs[k, :3]) and not step.obs[k, :3].any()
            # the limit comes after three of the four frames, so that the third is pooled with those of the step before
            assert 0 < (step.final_obs[k, 3] != whole.obs[k, 3]).mean() < 0.15
    assert truncated == 8


def test_several_games_that_end_in_one_step_are_all_logged(tmp_path):
    games = AtariGames(ENV_ID, 12, seed=0, num_threads=1, max_frames=400)
    config = {"options": {"track": False, "total_timesteps": 1000}}
    log = Log(tmp_path, config, {}, state=None, global_step=0, forked=False, check_folder=lambda: None)
    ended = []
    for t, step in enumerate(play(games, 130)):
        log.games(t, step.finished)
        ended += [(t, game.episodic_return) for game in step.finished]
    log.close()
    logged = [r for r in rows(tmp_path / "curves.csv") if r["tag"] == "charts/episodic_return"]
    assert [(int(r["global_step"]), float(r["value"])) for r in logged] == ended
    assert len(ended) == 12 and {t for t, _ in ended} == {99}


def test_the_number_of_emulator_threads_changes_nothing():
    shown = [play(AtariGames(ENV_ID, 5, seed=7, num_threads=n), 400) for n in (1, 2, 0)]
    for steps in zip(*shown, strict=True):
        one, *others = [(s.obs.tobytes(), s.rewards.tolist(), s.terminations.tolist(), s.finished) for s in steps]
        assert others == [one, one]


def test_actions_stick_only_where_the_id_says_so():
    assert atari_spec(ENV_ID)["repeat_action_probability"] == 0.0
    assert atari_spec("ALE/SpaceInvaders-v5")["repeat_action_probability"] == 0.25
    pairs = {}
    for env_id in (ENV_ID, "ALE/SpaceInvaders-v5"):
        games = AtariGames(env_id, 16, seed=0, num_threads=2)
        starts: dict[int, list[int]] = {}
        for k, frames in enumerate(games.frame_numbers.tolist()):
            starts.setdefault(frames, []).append(k)
        twins = next(ks for ks in starts.values() if len(ks) >= 2)[:2]  # two games with the same number of no-ops
        rng = np.random.default_rng(0)
        for _ in range(60):
            games.send(np.full(16, rng.integers(0, games.num_actions)))
            step = games.receive()
        pairs[env_id] = np.array_equal(step.obs[twins[0]], step.obs[twins[1]])
    assert pairs == {ENV_ID: True, "ALE/SpaceInvaders-v5": False}


@pytest.mark.parametrize(
    ("env_id", "num_actions"), [("PongNoFrameskip-v4", 6), ("ALE/Breakout-v5", 4), ("ALE/Seaquest-v5", 18)]
)
def test_any_atari_game_plays(env_id, num_actions):
    games = AtariGames(env_id, 2, seed=0, num_threads=1)
    assert games.num_actions == num_actions
    assert len({step.obs.tobytes() for step in play(games, 50)}) > 40
