"""Play whole games with a saved PPO agent: actions sampled from its policy as in its run's own evaluation, or greedy.

python -m evals.ppo_eval runs/NAME --eval-episodes 30 --capture-video
"""

from functools import partial

import tyro

from evals import common
from ppo_atari_prune import Agent, make_masks, make_policy, prunable
from prune_utils.basics import exit_codes


def main() -> None:
    with exit_codes():
        args = tyro.cli(common.Args, prog="python -m evals.ppo_eval", description=__doc__)
        how = "greedy" if args.greedy else "sampled"
        common.run(args, Agent, partial(make_policy, greedy=args.greedy), how, prunable, make_masks)


if __name__ == "__main__":
    main()
