"""Play whole games with a saved DQN: epsilon-greedy as in its run's own evaluation, or greedy.

python -m evals.dqn_eval runs/NAME --eval-episodes 30 --capture-video
"""

from dataclasses import dataclass
from functools import partial

import tyro

from dqn_atari_prune import QNetwork, make_masks, make_policy, prunable
from evals import common
from prune_utils.basics import check, exit_codes


@dataclass
class Args(common.Args):
    epsilon: float | None = None
    """share of random actions, in [0, 1]; None is what the run was evaluated with, or 0.01 where that is not known"""


def main() -> None:
    with exit_codes():
        args = tyro.cli(Args, prog="python -m evals.dqn_eval", description=__doc__)
        epsilon = common.recorded_options(args.model).get("eval_epsilon", 0.01) if args.epsilon is None else args.epsilon
        check(0 <= epsilon <= 1, "epsilon", "lie in [0, 1]", epsilon)
        check(args.epsilon is None or not args.greedy, "epsilon", "come without --greedy", epsilon)
        policy = partial(make_policy, epsilon=0.0 if args.greedy else epsilon)
        common.run(args, QNetwork, policy, "greedy" if args.greedy else f"epsilon {epsilon:g}", prunable, make_masks)


if __name__ == "__main__":
    main()
