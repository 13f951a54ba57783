"""Does checks.train_on_wrappers play CleanRL's environment? Compare what both show under the same random actions.

    python -m checks.same_environment --cleanrl DIR --cleanrl-python PATH

CleanRL's make_env runs in its own Python, with its own versions of Gymnasium and of the emulator.
"""

import inspect
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ale_py
import gymnasium as gym
import tyro

from checks.train_on_wrappers import make_env
from prune_utils.basics import check, exit_codes


@dataclass
class Args:
    cleanrl: Path
    """a checkout of CleanRL"""
    cleanrl_python: str = sys.executable
    """the Python that runs CleanRL"""
    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of the game"""
    steps: int = 20_000
    """agent steps to play"""


def play(env, steps: int) -> str:
    """Lives, games and points, and a digest of all stacks, signs of rewards, and ends."""
    import hashlib

    import numpy as np

    rng, digest, lives, returns = np.random.default_rng(0), hashlib.sha256(), 0, []
    obs, _ = env.reset(seed=1)
    for _ in range(steps):
        digest.update(np.ascontiguousarray(obs).tobytes())
        obs, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        digest.update(repr((float(np.sign(reward)), bool(terminated), bool(truncated))).encode())
        if "episode" in info:
            returns.append(int(np.asarray(info["episode"]["r"]).item()))
        if terminated or truncated:
            obs, _ = env.reset()
            lives += 1
    return f"{lives} lives, {len(returns)} games, {sum(returns):,} points, digest {digest.hexdigest()[:16]}"


CLEANRL = """
import ale_py
from cleanrl.ppo_atari import make_env
print(play(make_env({env_id!r}, 0, False, "")(), {steps}))
"""


def main(args: Args) -> int:
    check((args.cleanrl / "cleanrl" / "ppo_atari.py").is_file(), "cleanrl", "be a checkout of CleanRL", args.cleanrl)
    gym.register_envs(ale_py)
    ours = play(make_env(args.env_id), args.steps)
    program = inspect.getsource(play) + CLEANRL.format(env_id=args.env_id, steps=args.steps)
    words, environment = [args.cleanrl_python, "-c", program], os.environ | {"PYTHONPATH": str(args.cleanrl.resolve())}
    cleanrl = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    print(f"ours:    {ours}\nCleanRL: {cleanrl}")
    return int(ours != cleanrl)


if __name__ == "__main__":
    with exit_codes():
        sys.exit(main(tyro.cli(Args, prog="python -m checks.same_environment", description=__doc__)))
