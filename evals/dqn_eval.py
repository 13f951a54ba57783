"""Play whole games with a saved DQN: epsilon 0.01, as CleanRL does, or greedy.

python evals/dqn_eval.py runs/NAME --eval-episodes 30 --capture-video
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import games

EPSILON = 0.01


def make_policy(network, seed: int, greedy: bool = False):
    """Observations (n, 4, 84, 84) to actions (n,); the same numbers are drawn whether they are used or not."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def act(obs: torch.Tensor) -> torch.Tensor:
        q_values = network(obs.to(device))
        explore = torch.rand(len(obs), generator=generator, device=device) < (0.0 if greedy else EPSILON)
        random_actions = torch.randint(q_values.shape[1], (len(obs),), generator=generator, device=device)
        return torch.where(explore, random_actions, q_values.argmax(dim=1))

    return act


def evaluate(network, make_games, env_id: str, eval_episodes: int, seed: int, num_threads: int) -> list[dict]:
    """Rows (episode, seed, return, length, truncated) of eval_episodes whole games, in fp32."""
    return games.play(make_policy(network, seed), make_games, env_id, eval_episodes, seed, num_threads)


if __name__ == "__main__":
    import dqn_atari_prune

    games.run(dqn_atari_prune, dqn_atari_prune.QNetwork, make_policy, __doc__)
