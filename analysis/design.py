"""What is declared: options, contrast and quantity of each algorithm, and what an answer takes."""

from pathlib import Path

COMMON = {
    "env_id": "SpaceInvadersNoFrameskip-v4",
    "total_timesteps": 2_000_000,
    "eval_episodes": 10,
    "prune_at": 0.5,
    "prune_cuts": 1,
    "prune_until": 0.8,
    "prune_scope": "layer",
    "prune_bias": True,
    "prune_head": True,
    "fork_seed": None,
    "hidden_size": 512,
    "width": 1.0,
    "num_envs": 8,
    "gamma": 0.99,
    "torch_deterministic": True,
    "cuda": True,
}
DQN = {
    "exp_name": "dqn_atari_prune",
    "learning_rate": 1e-4,
    "buffer_size": 1_000_000,
    "tau": 1.0,
    "target_network_frequency": 1000,
    "batch_size": 32,
    "start_e": 1.0,
    "end_e": 0.01,
    "exploration_fraction": 0.1,
    "learning_starts": 80_000,
    "train_frequency": 4,
    "eval_epsilon": 0.01,
}
PPO = {
    "exp_name": "ppo_atari_prune",
    "learning_rate": 2.5e-4,
    "num_steps": 128,
    "anneal_lr": True,
    "gae_lambda": 0.95,
    "num_minibatches": 4,
    "update_epochs": 4,
    "norm_adv": True,
    "clip_coef": 0.1,
    "clip_vloss": True,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": None,
}
DESIGN = {"dqn": COMMON | DQN, "ppo": COMMON | PPO}
"""the scripts' defaults, but for machine and seed; where a run of an earlier version lacks an option, its value was this one"""
MEASURING = {"eval_episodes"}
"""options that change how well a run is measured but not its training, so runs of one study may differ in them"""
DECLARED = "l1-0.5"
"""the arm of each algorithm that is declared; every other comparison is exploratory"""
QUANTITIES = {"after_cut": "return after the cut", "late": "late return", "final": "final network", "shock": "shock"}
"""what is compared; the declared contrast is of the first"""
BINS = 10
"""equal bins of agent steps from the cut to the end; the last one is the late return"""
MARGIN = 0.10
"""the share of the dense return that the declared arm may lose and still be called not worse"""
MIN_SEEDS = 3
"""the fewest seeds that give an answer"""
PLANNED = {"dqn": 3, "ppo": 6}
"""seeds of the declared study; an answer of fewer is called so far"""
CONTROLS = 0.9
"""from this rate on, an arm is left out of trends; a plain cut is a positive control, which shows that a loss can be seen"""
EQUAL = 0.02
"""share by which an arm may be larger than another of equal size"""
HELD = 0.95
"""from this share of its commonest action on, an evaluation is called a held action"""
FEW_DISTINCT, OF_GAMES = 0.85, 50
"""an evaluation without recorded actions is marked if it has OF_GAMES games or more and a smaller share of them is distinct"""
NO_SKILL = Path(__file__).resolve().parents[1] / "results" / "no_skill.csv"
"""what python -m evals.no_skill measured"""
CLEANRL = NO_SKILL.with_name("cleanrl.csv.gz")
"""the training games of CleanRL's own runs, as python -m checks.cleanrl_returns took them out of their TensorBoard files"""
