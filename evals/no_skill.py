"""What no skill scores in a game: uniform random play, and every action held all the time.

    python -m evals.no_skill --env-id SpaceInvadersNoFrameskip-v4

A held action is played as an evaluation plays a DQN: with epsilon 0.01, whole games, all lives. The game's rows in the CSV
file are replaced, those of other games are kept. The report draws random play and the best held action beside every score.
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import pandas as pd
import torch
import tyro

from prune_utils.basics import UserError, check, check_file, derive_seed, exit_codes, write_atomically
from prune_utils.evaluation import Policy, play, statistics
from prune_utils.games import AtariGames, atari_spec

OUT = Path(__file__).resolve().parents[1] / "results" / "no_skill.csv"


@dataclass
class Args:
    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of an Atari game"""
    eval_episodes: int = 100
    """whole games of each policy, at least 2"""
    epsilon: float = 0.01
    """share of random actions of a held action, in [0, 1]"""
    seed: int = 1
    """seed of the games and of the random actions, at least 0"""
    num_threads: int = 0
    """threads of the emulator, at least 0; 0 is one per core"""
    out: Path = OUT
    """CSV file"""


def held_action(action: int, num_actions: int, epsilon: float, generator: torch.Generator) -> Policy:
    """The same action at every step, and a random one with probability epsilon."""

    def policy(obs: torch.Tensor) -> torch.Tensor:
        explore = torch.rand(len(obs), generator=generator) < epsilon
        random_actions = torch.randint(num_actions, (len(obs),), generator=generator)
        return torch.where(explore, random_actions, action)

    return policy


def measure(args: Args, name: str, action: int, epsilon: float, num_actions: int) -> dict:
    """A row of the table: the score of one policy over its games."""
    generator = torch.Generator().manual_seed(derive_seed(args.seed, "evaluation"))
    policy = held_action(action, num_actions, epsilon, generator)
    games = play(policy, args.env_id, args.eval_episodes, derive_seed(args.seed, "games"), args.num_threads)
    score = statistics([game["return"] for game in games])
    low, high = score["ci95"]
    row = {"env_id": args.env_id, "policy": name, "epsilon": epsilon, "games": score["n"], "mean": score["mean"], "low": low}
    return row | {"high": high, "std": score["std"], "distinct": len({(game["return"], game["length"]) for game in games})}


def other_games(args: Args) -> list[dict]:
    """The rows of other games that the CSV file has now."""
    if not args.out.exists():
        return []
    try:
        table = pd.read_csv(args.out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out must be a table of evals.no_skill, got {args.out}: {type(error).__name__}") from None
    columns = ("env_id", "policy", "epsilon", "games", "mean", "low", "high")
    check(set(columns) <= set(table), "out", f"be a table with the columns {', '.join(columns)}", args.out)
    return table[table.env_id != args.env_id].to_dict("records")


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m evals.no_skill", description=__doc__)
        check(args.eval_episodes >= 2, "eval_episodes", "be at least 2", args.eval_episodes)
        check(0 <= args.epsilon <= 1, "epsilon", "lie in [0, 1]", args.epsilon)
        check(args.seed >= 0, "seed", "be at least 0", args.seed)
        check(args.num_threads >= 0, "num_threads", "be at least 0", args.num_threads)
        atari_spec(args.env_id)
        check_file("out", args.out)
        other_games(args)  # refuses what is no such table, before minutes of play
        num_actions = AtariGames(args.env_id, 1, 0).num_actions
        meanings = gym.make(args.env_id).unwrapped.get_action_meanings()[:num_actions]
        rows = []
        for name, action, epsilon in [("random", 0, 1.0), *((name, k, args.epsilon) for k, name in enumerate(meanings))]:
            rows.append(row := measure(args, name, action, epsilon, num_actions))
            print(
                f"{name}: mean return {row['mean']:.1f} (95 % interval {row['low']:.1f} to {row['high']:.1f}), "
                f"{row['games']} games, {row['distinct']} of them distinct",
                flush=True,
            )
        table = pd.DataFrame(other_games(args) + rows).sort_values("env_id", kind="stable")
        write_atomically(args.out, table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode())
        print(f"written to {args.out}")


if __name__ == "__main__":
    main()
