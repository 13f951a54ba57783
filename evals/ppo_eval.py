"""Play whole games with a saved PPO agent: actions sampled from its policy, as CleanRL does, or greedy.

python evals/ppo_eval.py runs/NAME --eval-episodes 30 --capture-video
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import games


def make_policy(network, seed: int, greedy: bool = False):
    """Observations (n, 4, 84, 84) to actions (n,); the same numbers are drawn whether they are used or not."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def act(obs: torch.Tensor) -> torch.Tensor:
        logits, _ = network(obs.to(device))
        clocks = torch.empty_like(logits).exponential_(generator=generator)  # the first to ring is the sampled action
        return (logits if greedy else logits.softmax(dim=1) / clocks).argmax(dim=1)

    return act


def evaluate(network, make_games, env_id: str, eval_episodes: int, seed: int, num_threads: int) -> list[dict]:
    """Rows (episode, seed, return, length, truncated) of eval_episodes whole games, in fp32."""
    return games.play(make_policy(network, seed), make_games, env_id, eval_episodes, seed, num_threads)


if __name__ == "__main__":
    import ppo_atari_prune

    games.run(ppo_atari_prune, ppo_atari_prune.Agent, make_policy, __doc__)
