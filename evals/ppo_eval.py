"""Play whole games with a saved PPO agent: actions sampled from its policy as in its run's own evaluation, or greedy.

python -m evals.ppo_eval runs/NAME --eval-episodes 30 --capture-video
"""

import tyro

from evals import common
from ppo_atari_prune import Agent, make_masks, make_policy, prunable
from prune_utils.basics import exit_codes
from prune_utils.evaluation import Policy


def make_greedy_policy(network: Agent, seed: int) -> Policy:
    """The most probable action of each observation; nothing is drawn."""
    return lambda obs: network(obs.to(network.actor.weight.device))[0].argmax(dim=1)


def main() -> None:
    with exit_codes():
        args = tyro.cli(common.Args, prog="python -m evals.ppo_eval", description=__doc__)
        policy, how = (make_greedy_policy, "greedy") if args.greedy else (make_policy, "sampled")
        common.run(args, Agent, policy, how, prunable, make_masks)


if __name__ == "__main__":
    main()
