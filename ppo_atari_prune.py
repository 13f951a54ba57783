"""Train PPO on an Atari game, prune the network once in the middle of training, go on, and log what it cost and gained.

Algorithm: Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), with the hyperparameters and loss of CleanRL's
ppo_atari.py. Cut: one-shot magnitude (`l1`) or random unstructured pruning of every convolution and linear layer, at the
end of the first rollout and its epochs at which `--prune-at` of the training is done; pruned entries stay exactly zero.

    python ppo_atari_prune.py --env-id SpaceInvadersNoFrameskip-v4 --prune-type l1 --prune-rate 0.5 --seed 1

It writes runs/<run_name>/: config.json, source.py, curves.csv, TensorBoard events, model.pt, eval.csv and, last, summary.json.
The file is self-contained; only evaluation and the table of storage formats are imported, from evals/, where they are used.
"""

import copy
import csv
import fcntl
import hashlib
import importlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from torch.nn.utils import prune
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

ALGORITHM = "ppo"


# --------------------------------------------------------------------------------------------------------------- options
@dataclass
class Args:
    exp_name: str = Path(__file__).stem
    """name of the experiment: the part of the default run name that says which script ran"""
    seed: int = 1
    """seed of everything random in the run, at least 0; arms of one seed are the same run until the cut"""
    torch_deterministic: bool = True
    """only deterministic algorithms of cuDNN"""
    cuda: bool = True
    """use the GPU where there is one"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """what the network computes in while training; auto is bf16 on a CPU that computes in it, else fp32"""
    num_threads: int = 0
    """CPU threads of the network and the emulator; 0 is all the cores that this process may use"""
    track: bool = False
    """log to Weights & Biases too; offline when it cannot be reached"""
    wandb_project_name: str = "atari-prune"
    """the W&B project"""
    wandb_entity: str | None = None
    """the W&B team or user; None is the default one of the account"""
    capture_video: bool = False
    """record one game of the final network as an mp4 in the run folder"""
    save_model: bool = True
    """keep the weights at the end: model.pt and, where evals/ is beside the script, model_packed.npz"""
    runs_dir: str = "runs"
    """folder that holds the run folders"""
    run_name: str | None = None
    """name of the run folder; None is made from game, algorithm, arm, seed and what else shapes the result, off its default"""
    overwrite: bool = False
    """start anew where a run of this name exists; without it an unfinished one goes on"""
    checkpoint_minutes: float = 10.0
    """wall-clock minutes between checkpoints, at least 0; 0 for none; never changes a result"""
    fork_from: str | None = None
    """run folder of the dense twin: start from its prune point, with other prune_type, prune_rate, prune_scope, prune_bias"""
    fork_seed: int | None = None
    """with --fork-from, new generators from there on, mask included; --prune-type none with it is the A/A arm"""

    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of an Atari game; actions stick only if the id says so"""
    eval_episodes: int = 10
    """whole games played before the cut, after it and at the end; 0 for none"""
    prune_type: Literal["none", "random", "l1"] = "l1"
    """which entries to remove: none, random ones, or the smallest in magnitude"""
    prune_rate: float = 0.3
    """share of the entries of every tensor to remove, in [0, 1); exactly round(rate * n) of each, or of all in scope global"""
    prune_at: float = 0.5
    """when to prune, as a share of the training, in [0, 1]: 0 is sparse from scratch, 1 is after training"""
    prune_scope: Literal["layer", "global"] = "layer"
    """layer removes the rate from each tensor, global ranks all tensors together"""
    prune_bias: bool = True
    """prune bias tensors too, as the original study did"""
    hidden_size: int = 512
    """units of the hidden linear layer; 83 gives a dense network with the parameters of rate 0.8"""

    total_timesteps: int = 2_000_000
    """agent steps of the run, over all games (4 frames each); whole iterations only"""
    learning_rate: float = 2.5e-4
    """step size of Adam, at the start where it is annealed"""
    num_envs: int = 8
    """games played at once"""
    num_steps: int = 128
    """agent steps of each game in a rollout"""
    anneal_lr: bool = True
    """let the learning rate fall to 0 in a straight line over the training"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    gae_lambda: float = 0.95
    """decay of generalised advantage estimation, in [0, 1]"""
    num_minibatches: int = 4
    """minibatches that a rollout is split into"""
    update_epochs: int = 4
    """passes over a rollout"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.1
    """how far the probability ratio may move before its gradient is cut off, above 0"""
    clip_vloss: bool = True
    """clip the value loss too, with the same coefficient"""
    ent_coef: float = 0.01
    """weight of the entropy bonus, at least 0"""
    vf_coef: float = 0.5
    """weight of the value loss, at least 0"""
    max_grad_norm: float = 0.5
    """norm to which the gradients are clipped, above 0"""
    target_kl: float | None = None
    """KL divergence above which the epochs of a rollout end early, above 0; None for never"""

    def __post_init__(self):
        rules = {"be at least 1": "num_steps num_minibatches update_epochs", "be at least 0": "ent_coef vf_coef"}
        check_options(self, rules | {"be above 0": "clip_coef max_grad_norm", "lie in [0, 1]": "gae_lambda"})
        require(self.target_kl is None or self.target_kl > 0, "target_kl", "be above 0", self.target_kl)
        rollout = f"divide a rollout of num_envs * num_steps = {self.steps_per_iteration} agent steps"
        require(self.steps_per_iteration % self.num_minibatches == 0, "num_minibatches", rollout, self.num_minibatches)
        spread = self.num_minibatches < self.steps_per_iteration or not self.norm_adv
        require(spread, "num_minibatches", "leave two agent steps a minibatch, or more, with --norm-adv", self.num_minibatches)
        least = f"hold one rollout ({self.steps_per_iteration} agent steps)"
        require(self.total_timesteps >= self.steps_per_iteration, "total_timesteps", least, self.total_timesteps)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps


# ------------------------------------------------------------------------------------------------ shared: options, naming
NEUTRAL = {"runs_dir", "run_name", "overwrite", "track", "wandb_project_name", "wandb_entity", "capture_video", "save_model"}
NEUTRAL |= {"checkpoint_minutes", "fork_from"}
"""options that do not shape a result"""
OF_THE_CUT = {"prune_type", "prune_rate", "prune_scope", "prune_bias", "fork_seed"}
"""options in which a fork may differ from its parent"""
CHECKPOINT_FORMAT = 2
EVALS = Path(__file__).resolve().parent / "evals"
"""evaluation and storage formats; absent where the script was copied alone"""
RULES = {
    "be at least 0": lambda x: 0 <= x < math.inf,
    "be at least 1": lambda x: 1 <= x < math.inf,
    "be above 0": lambda x: 0 < x < math.inf,
    "lie in [0, 1]": lambda x: 0 <= x <= 1,
    "lie in [0, 1)": lambda x: 0 <= x < 1,
    "lie in (0, 1]": lambda x: 0 < x <= 1,
}


class UserError(ValueError):
    """What a user typed wrong: shown as one line, exit code 2."""


class Busy(Exception):
    """Another process holds the run folder: exit code 75."""


class Stop(BaseException):
    """A signal asked the run to end: exit code 128 + its number."""


def require(holds, option: str, rule: str, value) -> None:
    if not holds:
        raise UserError(f"--{option.replace('_', '-')} must {rule}, got {value}")


def check_options(args, rules: dict[str, str]) -> None:
    """Raise UserError for the first option that breaks its rule: rules maps each to the algorithm's options under it."""
    shared = {"be at least 0": "seed num_threads eval_episodes", "be at least 1": "num_envs hidden_size total_timesteps"}
    shared |= {"be above 0": "learning_rate", "lie in [0, 1]": "gamma prune_at", "lie in [0, 1)": "prune_rate"}
    for rule, names in [*shared.items(), *rules.items()]:
        for name in names.split():
            require(RULES[rule](getattr(args, name)), name, rule, getattr(args, name))
    require(0 <= args.checkpoint_minutes < math.inf, "checkpoint_minutes", "be at least 0", args.checkpoint_minutes)
    forks = args.fork_seed is None or (args.fork_from is not None and args.fork_seed >= 0)
    require(forks, "fork_seed", "be at least 0 and come with --fork-from", args.fork_seed)
    named = args.run_name is None or re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", args.run_name)
    require(named, "run_name", "use only [A-Za-z0-9_.-], and no dot first", args.run_name)
    for name in ("eval_episodes", "capture_video"):
        require(EVALS.is_dir() or not getattr(args, name), name, "be off: evals/ is not beside the script", getattr(args, name))
    atari_spec(args.env_id)


def arm(args) -> dict:
    """What a run is in a study: arms of one algorithm, game and seed are compared."""
    rate = 0.0 if args.prune_type == "none" else args.prune_rate
    name = "none" if args.prune_type == "none" else f"{args.prune_type}-{rate:g}"
    name += "" if args.fork_seed is None else f"-fork{args.fork_seed}"
    where = {"algorithm": ALGORITHM, "env_id": args.env_id, "seed": args.seed}
    return where | {"arm": name, "prune_type": args.prune_type, "effective_prune_rate": rate}


def default_run_name(args) -> str:
    """Game, script, arm, seed, then every other option that shapes the result and is not at its default."""
    told = NEUTRAL | {"exp_name", "seed", "env_id", "prune_type", "prune_rate", "fork_seed"}
    if args.prune_type == "none":
        told |= {"prune_scope", "prune_bias"}
    others = [
        (f.name, getattr(args, f.name)) for f in fields(args) if f.name not in told and getattr(args, f.name) != f.default
    ]
    parts = [args.env_id, args.exp_name, arm(args)["arm"], f"s{args.seed}", *(f"{name}-{value}" for name, value in others)]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "__".join(parts))


def derive_seed(seed: int, purpose: str) -> int:
    """A seed below 2**30 of its own for each purpose, so that no two parts of a run share a random stream."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4], "big") >> 2


@contextmanager
def seeded(seed: int):
    """Seed torch's global CPU generator inside the block, for library code that draws from it, and put it back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def cut_iteration(args) -> int:
    """The first iteration at whose end global_step >= prune_at * (steps of all whole iterations); 0 is before the first."""
    return math.ceil(args.prune_at * (args.total_timesteps // args.steps_per_iteration) - 1e-6)


# --------------------------------------------------------------------------------------------------- shared: environment
def atari_spec(env_id: str) -> dict:
    """Keyword arguments of an Atari id: game (the ROM's name), repeat_action_probability, full_action_space."""
    gym.register_envs(ale_py)
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise UserError(f"--env-id must be an Atari id that Gymnasium knows, got {env_id}: {error}") from None
    require(spec.entry_point == "ale_py.env:AtariEnv", "env_id", "be an Atari game", env_id)
    return {key: spec.kwargs[key] for key in ("game", "repeat_action_probability", "full_action_space")}


class Game(NamedTuple):
    """A finished game: its unclipped score over all lives, its length in agent steps, whether the frame limit ended it."""

    env: int
    episodic_return: float
    episodic_length: int
    truncated: bool


class Step(NamedTuple):
    """What the games show after a step; every array has a row a game, obs and final_obs are (num_envs, 4, 84, 84) uint8."""

    obs: np.ndarray
    rewards: np.ndarray  # of the game, unclipped
    terminations: np.ndarray  # a lost life or the end of the game
    truncations: np.ndarray  # the frame limit
    game_starts: np.ndarray  # obs is the first of a new game
    final_obs: np.ndarray | None  # the last frames of a truncated game; elsewhere not to be used
    finished: list[Game]


class AtariGames:
    """num_envs games stepped together: frame skip 4 with max-pool, 84x84 grey, stack of 4, life loss as termination.

    Same-step autoreset: every row is a real step, and the row of a game that ended shows the first frames of the next.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, num_threads: int = 0, max_frames: int = 108_000):
        self.envs = AtariVectorEnv(
            num_envs=num_envs,
            num_threads=min(num_threads, num_envs),
            autoreset_mode="SameStep",
            life_loss_info=True,
            reward_clipping=False,
            max_num_frames_per_episode=max_frames,
            **atari_spec(env_id),
        )
        self.num_actions = int(self.envs.single_action_space.n)
        self.sticky = atari_spec(env_id)["repeat_action_probability"] > 0
        self.env_id, self.num_envs, self.seed = env_id, num_envs, seed
        self.obs, info = self.envs.reset(seed=seed)
        self.frame_numbers = info["episode_frame_number"]
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self.resets = np.zeros(num_envs, np.int64)  # games begun since the seeded one
        self.histories = [bytearray() for _ in range(num_envs)]  # actions of the game in progress

    def send(self, actions: np.ndarray) -> None:
        self.actions = actions.tolist()
        self.envs.send(actions)

    def receive(self) -> Step:
        self.obs, rewards, terminations, truncations, info = self.envs.recv()
        self.returns += rewards
        self.lengths += 1
        for history, action in zip(self.histories, self.actions, strict=True):
            history.append(action)
        # a lost life terminates too and plays on; only the end of a game puts its frame counter back
        game_starts = info["episode_frame_number"] < self.frame_numbers
        self.frame_numbers = info["episode_frame_number"]
        ended = np.flatnonzero(game_starts)
        finished = [Game(int(k), float(self.returns[k]), int(self.lengths[k]), bool(truncations[k])) for k in ended]
        if finished:
            self.returns[ended], self.lengths[ended] = 0, 0
            self.resets[ended] += 1
            for k in ended:
                self.histories[k].clear()
            if self.sticky:
                self.begin(game_starts)
        return Step(self.obs, rewards, terminations, truncations, game_starts, info.get("final_obs"), finished)

    def begin(self, mask: np.ndarray, seeded: bool = True) -> None:
        """Reset the games in the mask. Sticky actions draw at every step, so there each game has a seed of its own."""
        seeds = self.seed + np.arange(self.num_envs) + self.sticky * self.num_envs * self.resets
        obs, info = self.envs.reset(seed=seeds[mask] if seeded else None, options={"reset_mask": mask})
        self.obs, self.frame_numbers = obs, info["episode_frame_number"]

    def state_dict(self) -> dict:
        kept = {"env_id": self.env_id, "seed": self.seed, "resets": self.resets.tolist()}
        kept |= {"histories": [h.hex() for h in self.histories]}
        kept |= {"frame_numbers": self.frame_numbers.tolist(), "returns": self.returns.tolist()}
        return kept | {"lengths": self.lengths.tolist()}

    def load_state_dict(self, kept: dict) -> None:
        """Play the games in progress again, aligned at their end; the emulator can't be saved, but it repeats itself.

        Without sticky actions a game depends on its seed, on how many no-op counts were drawn since (one a reset) and on its
        actions. Generators are first advanced together, with room for games that end while others wait for their start.
        """
        if kept["env_id"] != self.env_id:
            raise OSError(f"the checkpoint is of {kept['env_id']}, not of {self.env_id}; --overwrite starts anew")
        self.seed, self.resets = kept["seed"], np.array(kept["resets"])
        self.histories = [bytearray.fromhex(h) for h in kept["histories"]]
        lengths = np.array([len(h) for h in self.histories])
        longest, drawn = int(lengths.max()), np.zeros(self.num_envs, np.int64)

        def draw(mask: np.ndarray, seeded: bool = False) -> None:
            self.begin(mask, seeded)
            drawn[mask] = 0 if seeded else drawn[mask] + 1

        draw(np.ones(self.num_envs, bool), seeded=True)
        while not self.sticky and (few := drawn < self.resets - 2 - longest // 100).any():
            draw(few)
        for t in range(longest + 1):
            starts = longest - lengths == t
            if (late := starts & ((drawn > self.resets) | (t > 0) & (drawn >= self.resets) | self.sticky)).any():
                draw(late, seeded=True)
            while not self.sticky and (few := starts & (drawn < self.resets)).any():
                draw(few)
            if t < longest:
                waits = lengths < longest - t
                actions = [0 if waits[k] else self.histories[k][t - longest] for k in range(self.num_envs)]
                before = self.frame_numbers
                self.obs, *_, info = self.envs.step(np.array(actions))
                self.frame_numbers = info["episode_frame_number"]
                drawn += self.frame_numbers < before
        if self.frame_numbers.tolist() != kept["frame_numbers"]:
            raise OSError("the emulator did not come back to where the checkpoint was made")
        self.returns, self.lengths = np.array(kept["returns"]), np.array(kept["lengths"])


# ------------------------------------------------------------------------------------------------------- shared: pruning
def prunable(network: nn.Module, bias: bool = True) -> dict[str, torch.Tensor]:
    """Weights (and biases) of every convolution and linear layer by name, in the order of the network."""
    kinds = ("weight", "bias") if bias else ("weight",)
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return {f"{name}.{kind}": getattr(layer, kind).detach() for name, layer in layers for kind in kinds}


def make_masks(
    tensors: dict[str, torch.Tensor], prune_type: str, rate: float, scope: str, seed: int
) -> dict[str, torch.Tensor]:
    """Float masks, 0 where an entry is pruned, by torch.nn.utils.prune; an empty dictionary for `none`.

    Scope `layer` removes round(rate * n) entries of each tensor. `global` ranks all tensors together; `random` then removes
    as many of each as `l1` does. Made on contiguous fp32 copies on the CPU: ties and draws are the same on every device.
    """
    if prune_type == "none":
        return {}
    flat = {name: t.detach().float().cpu().contiguous().flatten() for name, t in tensors.items()}
    pruned: dict[str, float | int] = dict.fromkeys(flat, rate)  # a share, or a number of entries
    if scope == "global":
        everything = torch.cat(list(flat.values()))
        ranked = prune.L1Unstructured(rate).compute_mask(everything, torch.ones_like(everything))
        masks = dict(zip(flat, ranked.split([t.numel() for t in flat.values()]), strict=True))
        pruned = {name: int((mask == 0).sum()) for name, mask in masks.items()}
    if scope == "layer" or prune_type == "random":
        method = {"l1": prune.L1Unstructured, "random": prune.RandomUnstructured}[prune_type]
        masks = {}
        for index, (name, t) in enumerate(flat.items()):
            with seeded(seed + index):  # reseeded a tensor: one that loses nothing draws nothing, and would shift the rest
                masks[name] = method(pruned[name]).compute_mask(t, torch.ones_like(t))
    return {name: torch.empty_like(t, dtype=torch.float32).copy_(masks[name].view_as(t)) for name, t in tensors.items()}


@torch.no_grad()
def apply_masks(network: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, torch.Tensor]) -> None:
    """Set pruned entries to +0.0 in place. Adam's moments would move them off zero again, so they are cleared with them."""
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameters[name]][moment].mul_(mask)
        parameters[name].mul_(mask).add_(0.0)  # -0.0 + 0.0 is +0.0


def mask_gradients(network: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Zero the gradients of pruned entries: Adam then moves them by 0 / (0 + eps), which is 0. Before any norm is taken."""
    if masks:
        torch._foreach_mul_([network.get_parameter(name).grad for name in masks], list(masks.values()))


def count_tensors(network: nn.Module, masks: dict[str, torch.Tensor]) -> dict[str, dict[str, int]]:
    """Per tensor: entries in all, pruned (zeros of the mask) and nonzero (by value: an entry can be 0 without a mask)."""
    counts = {}
    for name, t in prunable(network).items():
        pruned = int((masks[name] == 0).sum()) if name in masks else 0
        counts[name] = {"total": t.numel(), "pruned": pruned, "nonzero": int(t.count_nonzero())}
    return counts


# ---------------------------------------------------------------------------------------- shared: run folder and logging
def resolve(args, recorded: dict) -> dict:
    """What `auto` and this machine turn into: recorded, since results repeat bit for bit only where these agree.

    A run that goes on or forks keeps the precision and the number of threads that it was recorded with.
    """
    cuda = args.cuda and torch.cuda.is_available()
    if args.cuda and not cuda:
        print("no CUDA device: training on the CPU", file=sys.stderr)
    bf16 = not cuda and torch.cpu._is_avx512_bf16_supported()
    return {
        "device": "cuda" if cuda else "cpu",
        "precision": recorded.get("precision", "bf16" if bf16 else "fp32") if args.precision == "auto" else args.precision,
        "num_threads": args.num_threads or recorded.get("num_threads") or len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "ale_py": ale_py.__version__,
        "source_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }


def device_name(device: str) -> str:
    """Model of the GPU or the CPU: the same bits are promised on the same model only."""
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpus.read_text()) if cpus.exists() else None
    return torch.cuda.get_device_name() if device == "cuda" else model[1] if model else platform.machine()


def peak_ram_bytes(pid: int | str = "self") -> int | None:
    """Of a process at its fattest; None where Linux does not tell. ru_maxrss would begin at that of the program before exec."""
    status = Path(f"/proc/{pid}/status")
    told = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(told[1]) if told else None


def git_state() -> dict:
    """Commit of the checkout that the script lies in and whether tracked files differ; None outside of one."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=EVALS.parent, capture_output=True, text=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except OSError:  # no git
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip() or None, "dirty": bool(changes.stdout) if commit.returncode == 0 else None}


def write_atomically(path: Path, data: bytes | memoryview, keep_previous: bool = False) -> None:
    """A reader, or a crash, finds the old file or the whole new one, never a part."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)  # it would keep a full disk full
        raise
    if keep_previous and path.exists():
        os.replace(path, path.with_stem(path.stem + "_previous"))
    os.replace(beside, path)


def differences(old: dict, new: dict, but: set[str]) -> str:
    """What differs between the options and resolved values of two runs, apart from some; empty where nothing does."""
    return ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in new if key not in but and old.get(key) != new[key])


def read_config(folder: Path) -> dict:
    """config.json of a run folder; empty where there is none that a run could have written."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return config if config.keys() >= {"options", "resolved"} else {}
    except (OSError, ValueError, AttributeError):
        return {}


def open_run(args) -> tuple[Path, dict | None, object]:
    """Create and lock the run folder: folder, config (None where this run is finished already), lock (held while open).

    An unfinished run of the same options goes on. Raises UserError where the folder is not writable, no run's, or that of a
    run with other options or another script, and where a fork does not match its parent; Busy where a process holds it.
    """
    folder = Path(args.runs_dir) / (args.run_name or default_run_name(args))
    parent = Path(args.fork_from) if args.fork_from else None
    old = {} if args.overwrite else read_config(folder)
    begun = bool(old) and any(path.exists() for path in (folder / "summary.json", *folder.glob("checkpoint*.pt")))
    twin = read_config(parent) if parent and not begun else {}
    resolved = resolve(args, (old or twin).get("resolved", {}))
    options = asdict(args) | resolved
    if parent and not begun:  # later it needs its parent no more
        reached = twin and (parent / "prune_point.pt").is_file()
        require(reached, "fork_from", "be the folder of a dense run that has reached its cut", parent)
        changed = differences(twin["options"] | twin["resolved"], options, NEUTRAL | OF_THE_CUT)
        require(not changed, "fork_from", "be a run of the same options, script and machine", f"{parent} ({changed})")
    try:
        strange = [p.name for p in folder.iterdir() if p.name not in (".lock", "config.json.part")] if folder.is_dir() else []
        ours = not strange or read_config(folder)
        require(ours, "run_name", "not name a folder that holds something else than a run", folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise UserError(f"--runs-dir must be a folder that can be written, got {folder}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{folder} is in use by another process") from None
    if old:
        changed = differences(old["options"] | old["resolved"], options, NEUTRAL)
        if (folder / "summary.json").is_file():
            print(f"{folder} is finished; --overwrite starts anew" + (f" (since then: {changed})" if changed else ""))
            return folder, None, lock
        require(os.access(folder, os.W_OK | os.X_OK), "runs_dir", "be a folder that can be written", folder)
        require(not changed, "run_name", f"name another run, or --overwrite be given: {folder} was started otherwise", changed)
        if any(folder.glob("checkpoint*.pt")):
            return folder, old, lock
    versions = {"python": sys.version.split()[0], "numpy": np.__version__, "gymnasium": gym.__version__}
    config = {"algorithm": ALGORITHM, "options": asdict(args), "resolved": resolved, "versions": versions}
    config["device_name"] = device_name(resolved["device"])
    config |= {"parent": str(parent) if parent else None, "git": git_state(), "command": sys.argv}
    kept = {".lock", "config.json"}  # the latter until it is replaced: without it this would be no run's folder
    if old:  # the same rows will come again, to the same W&B run, and the same prune point, which forks may be reading
        kept |= {"wandb", "wandb_id"} | ({"prune_point.pt"} if old["device_name"] == config["device_name"] else set())
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "summary.json"):  # first of all it is finished no more
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())
    shutil.copyfile(__file__, folder / "source.py")
    return folder, config, lock


def compress(frames: torch.Tensor, block: int = 4096) -> list[bytes]:
    """Frames (n, 84, 84) uint8 of one game in blocks, each compressed by a thread of its own (zlib releases the GIL).

    What is compressed is how each frame differs from the one before it: mostly zeros.
    """

    def squeeze(part: torch.Tensor) -> bytes:
        array = part.cpu().numpy()
        return zlib.compress(np.concatenate([array[:1], array[1:] ^ array[:-1]]), 1)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(squeeze, frames.split(block)))


def decompress(blocks: list[bytes], frames: torch.Tensor, block: int = 4096) -> None:
    """Put the frames of compress() back in place."""

    def fill(pair) -> None:
        part, data = pair
        array = np.frombuffer(zlib.decompress(data), np.uint8).reshape(part.shape)
        part.copy_(torch.from_numpy(np.bitwise_xor.accumulate(array, axis=0)))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(fill, zip(frames.split(block), blocks, strict=True)))


def save_checkpoint(path: Path, log: "Log", state: dict, keep_previous: bool = False) -> None:
    """Write all state of a run; the file before is kept too if wanted."""
    kept = {key: state[key] for key in ("global_step", "eval", "emptied", "sparsity")}
    kept |= {"format": CHECKPOINT_FORMAT, "algorithm": ALGORITHM, "games": state["games"].state_dict()}
    kept |= {"tensors": {name: t.cpu() for name, t in live_tensors(state).items()}, "log": log.state_dict()}
    kept |= {"masks": {name: mask.bool().cpu() for name, mask in state["masks"].items()}}
    kept |= {"generators": [g.get_state() for g in state["generators"]]}
    if "buffer" in state:
        kept["buffer"] = state["buffer"].state_dict()
    data = io.BytesIO()  # torch.save to a full disk says something else than that it is full
    torch.save(kept, data)
    write_atomically(path, data.getbuffer(), keep_previous)


def load_checkpoint(path: Path) -> dict | None:
    """The last good of a checkpoint and the one before it, with weights_only and every checksum verified; None without any.

    Raises OSError where there are files but no good one.
    """
    found = [file for file in (path, path.with_stem(path.stem + "_previous")) if file.exists()]
    for file in found:
        try:
            with zipfile.ZipFile(file) as archive:
                if broken := archive.testzip():
                    raise zipfile.BadZipFile(f"{broken} has a wrong checksum")
            kept = torch.load(file, weights_only=True, map_location="cpu")
            if (kept["format"], kept["algorithm"]) != (CHECKPOINT_FORMAT, ALGORITHM):
                raise ValueError(f"of {kept['algorithm']}, format {kept['format']}; not {ALGORITHM}, {CHECKPOINT_FORMAT}")
            return kept
        except Exception as error:  # whatever a torn or strange file makes the readers say
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{file} is no good checkpoint ({reason})", file=sys.stderr)
    if found:
        raise OSError(f"no good checkpoint is left in {path.parent}; --overwrite starts anew")
    return None


def begin(args, folder: Path, config: dict, state: dict) -> "Log":
    """Start the log, and the state where the run left off: its checkpoint, its parent's prune point, or nothing at all."""
    kept, parent = load_checkpoint(folder / "checkpoint.pt"), Path(args.fork_from) if args.fork_from else None
    forks = kept is None and parent is not None
    if forks and (kept := load_checkpoint(parent / "prune_point.pt")) is None:
        raise OSError(f"the prune point of {parent} is gone: that run was started anew")
    log = Log(args, folder, config, kept, parent if forks else None)
    if kept:
        for name, t in live_tensors(state).items():
            t.copy_(kept["tensors"][name])
        for name, mask in kept["masks"].items():
            state["masks"][name] = torch.empty_like(state["network"].get_parameter(name).detach()).copy_(mask)
        for generator, was in zip(state["generators"], kept["generators"], strict=True):
            generator.set_state(was)
        if "buffer" in state:
            state["buffer"].load_state_dict(kept["buffer"])
        renew(*state["working"])
        state["games"].load_state_dict(kept["games"])
        state |= {key: kept[key] for key in ("global_step", "eval", "emptied", "sparsity")}
        print(f"{folder} goes on at step {state['global_step']:,}" + (f", forked from {parent}" if forks else ""), flush=True)
        made_on, here = (read_config(parent) if forks else config)["device_name"], device_name(state["device"])
        if made_on != here:
            print(f"its checkpoint was made on {made_on}, this is {here}: the same bits can't be promised", file=sys.stderr)
    if forks and args.fork_seed is not None:
        for index, generator in enumerate(state["generators"]):
            generator.manual_seed(derive_seed(args.fork_seed, f"fork {index} of {args.seed}"))
    log.stops_at_once(False)
    if forks or (kept is None and cut_iteration(args) == 0):
        cut(args, folder, log, state)
    return log


def pause(args, folder: Path, log: "Log", state: dict) -> None:
    """Between two iterations: a checkpoint if one is due, and the end of the process if a signal asked for it."""
    due = args.checkpoint_minutes and time.monotonic() - log.saved >= 60 * args.checkpoint_minutes
    if due or log.signal:
        save_checkpoint(folder / "checkpoint.pt", log, state, keep_previous=True)
        log.saved = time.monotonic()
    if log.signal:
        print(f"stopped at step {state['global_step']:,} by {log.signal.name}; the same command goes on", file=sys.stderr)
        raise Stop(log.signal)


class Log:
    """One call feeds curves.csv, TensorBoard and W&B; clocks stay out of curves.csv, whose bytes repeat."""

    def __init__(self, args, folder: Path, config: dict, kept: dict | None = None, parent: Path | None = None):
        anew = {"learned": [0, 0.0], "seconds": 0.0}
        was = kept["log"] if kept else {"curves": "global_step,tag,value\n", "recent_returns": [], **anew}
        if parent:  # its curves are this run's up to here; its clocks are not
            was |= anew
        self.curves = open(folder / "curves.csv", "w")
        self.curves.write(was["curves"])
        self.first_step = kept["global_step"] if parent else 0 if kept is None else was["first_step"]
        self.tensorboard = SummaryWriter(str(folder), purge_step=kept["global_step"] + 1 if kept and not parent else None)
        self.tensorboard.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```")
        self.sent = 0 if parent else was["curves"].count("\n") - 1  # rows of curves.csv that TensorBoard and W&B were given
        self.known = wandb_rows(folder) if args.track else 0  # of them, those that W&B's files hold: they are not sent again
        self.wandb = start_wandb(args, folder, config) if args.track else None
        self.signal: signal.Signals | None = None
        self.at_once = True  # until all state is restored
        heard = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self.handlers_before = {number: signal.signal(number, self.on_signal) for number in heard}
        self.bar = tqdm(total=args.total_timesteps, unit=" steps", dynamic_ncols=True, disable=not sys.stderr.isatty())
        self.recent_returns: deque[float] = deque(was["recent_returns"], maxlen=20)
        self.gpu_utilisation: list[int] = []
        self.learned = was["learned"]  # agent steps and seconds of the laps that count
        self.seconds = was["seconds"]  # of the processes before this one
        self.started = self.last_line = self.last_sample = self.saved = time.monotonic()
        self.new_lap(kept["global_step"] if kept else 0, warm=False)
        if parent or self.known < self.sent:  # a killed client may not have written all that it was given
            for index, row in enumerate(csv.DictReader(was["curves"].splitlines())):
                metrics, step = {row["tag"]: float(row["value"])}, int(row["global_step"])
                if index >= self.sent:
                    self.send(step, metrics)
                elif index >= self.known and self.wandb:
                    self.wandb.log(metrics | {"global_step": step})

    def on_signal(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number)
        self.stops_at_once(self.at_once)

    def stops_at_once(self, at_once: bool) -> None:
        """Whether a signal ends the run where it is, since nothing of that needs to be kept, or at the next `pause`."""
        self.at_once = at_once
        if at_once and self.signal:
            told = f"stopped by {self.signal.name}; the same command goes on from the last checkpoint, if there is one"
            print(told, file=sys.stderr)
            raise Stop(self.signal)

    def state_dict(self) -> dict:
        self.curves.flush()
        self.tensorboard.flush()
        curves = Path(self.curves.name).read_text()  # all of it: a fork's parent may be cutting its own file back
        seconds = self.seconds + time.monotonic() - self.started
        kept = {"curves": curves, "recent_returns": list(self.recent_returns), "learned": list(self.learned)}
        return kept | {"seconds": seconds, "first_step": self.first_step}

    def send(self, global_step: int, metrics: dict[str, float], clocks: dict[str, float] | None = None) -> None:
        metrics, self.sent = metrics | (clocks or {}), self.sent + len(metrics)
        for tag, value in metrics.items():
            self.tensorboard.add_scalar(tag, value, global_step)
        if self.wandb and self.sent > self.known:
            self.wandb.log(metrics | {"global_step": global_step})

    def __call__(self, global_step: int, metrics: dict[str, float], clocks: dict[str, float] | None = None) -> None:
        for tag, value in metrics.items():
            self.curves.write(f"{global_step},{tag},{float(value)!r}\n")
        self.send(global_step, metrics, clocks)

    def games(self, global_step: int, finished: list[Game]) -> None:
        for game in finished:
            self.recent_returns.append(game.episodic_return)
            scores = {"charts/episodic_return": game.episodic_return, "charts/episodic_length": game.episodic_length}
            self(global_step, scores)

    def new_lap(self, global_step: int, warm: bool) -> None:
        self.lap_step, self.lap_time, self.warm = global_step, time.perf_counter(), warm

    def lap(self, global_step: int, learning_starts: int) -> float:
        """Agent steps per second since the last lap. Laps that learn throughout make the mean of the run, but for the first."""
        steps, seconds = global_step - self.lap_step, time.perf_counter() - self.lap_time
        if self.warm and self.lap_step >= learning_starts:
            self.learned = [self.learned[0] + steps, self.learned[1] + seconds]
        self.new_lap(global_step, warm=global_step > learning_starts)
        return steps / seconds

    def progress(self, global_step: int, steps_per_second: float, sparsity: float) -> None:
        """Move the bar; where the output is no terminal, print a line a minute instead. The return is of the last 20 games."""
        mean = sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else float("nan")
        self.bar.n = global_step
        self.bar.set_postfix_str(f"{steps_per_second:.0f} steps/s, return {mean:.0f}, sparsity {sparsity:.2f}")
        now = time.monotonic()
        if torch.cuda.is_initialized() and now - self.last_sample >= 1:
            self.last_sample = now
            with suppress(Exception):  # a slice of a GPU (MIG) can't tell, nor can torch without nvidia-ml-py
                self.gpu_utilisation.append(torch.cuda.utilization())
        if self.bar.disable and now - self.last_line >= 60:
            self.last_line = now
            done = f"step {global_step:,} of {self.bar.total:,}"
            print(f"{done}, {steps_per_second:.0f} steps/s, return {mean:.1f}, sparsity {sparsity:.2f}", flush=True)

    def close(self, summary: dict, played: list[dict], files: list[Path]) -> None:
        self.bar.close()
        self.curves.flush()
        os.fsync(self.curves.fileno())  # summary.json, which says that all is there, comes after it
        self.curves.close()
        self.tensorboard.close()
        if self.wandb:
            import wandb

            try:
                # without a slash in their tags: no rows of curves.csv
                self.wandb.log({f"{path.stem}_video": wandb.Video(str(path)) for path in files if path.suffix == ".mp4"})
                if played:
                    self.wandb.log({"evaluation_games": wandb.Table(list(played[0]), [list(game.values()) for game in played])})
                self.wandb.summary.update(summary)
                artifact = wandb.Artifact(f"model-{self.wandb.id}", type="model")
                for path in files:
                    artifact.add_file(str(path))
                self.wandb.log_artifact(artifact)
                self.wandb.finish()
            except Exception as error:  # whatever a strange answer makes the client say: the run folder has everything
                print(f"W&B could not be finished ({type(error).__name__}: {error})", file=sys.stderr)


def wandb_records(folder: Path) -> list[dict]:
    """What the W&B files of a run folder hold, as the client itself reads them."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    done = [
        subprocess.run([*words, str(files)], capture_output=True, text=True) for files in sorted(folder.glob("wandb/*run-*"))
    ]
    return [json.loads(line) for process in done for line in process.stdout.splitlines()]


def wandb_rows(folder: Path, before: int = 0) -> int:
    """How many rows of curves.csv the W&B files of this run folder hold: the client may have been killed at any moment.

    What it left behind may still be writing, so they are counted until their number stays.
    """
    items = [record.get("history", {}).get("item", {}) for record in wandb_records(folder)]
    found = sum("/" in tag and tag != "charts/SPS" for item in items for tag in item)
    if found == before:
        return found
    time.sleep(2)  # W&B's files are flushed every second
    return wandb_rows(folder, found)


def init_wandb(**options):
    """Start a W&B run; without a key or a network it is written offline, for scripts/sync_wandb.sh later."""
    import wandb

    settings = wandb.Settings(init_timeout=20, finish_timeout=60, x_transaction_log_flush_interval=1)
    try:
        # a start without a key would ask for one and wait; this only looks whether there is one
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("no API key")
        return wandb.init(settings=settings, **options)
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        wandb.teardown()  # without it the next init says that the run id is in use
        print(f"W&B is out of reach ({error}): offline; scripts/sync_wandb.sh {options['dir']} later", file=sys.stderr)
        return wandb.init(settings=settings, mode="offline", **options)


def start_wandb(args, folder: Path, config: dict):
    """Start the W&B run of this folder."""
    # made once and kept: two machines must not merge, and an id that was deleted on the server stays blocked
    if not (folder / "wandb_id").exists():
        write_atomically(folder / "wandb_id", f"{folder.name[:100]}-{secrets.token_hex(3)}".encode())
    run_id = os.environ.get("WANDB_RUN_ID") or (folder / "wandb_id").read_text()  # an agent's id wins
    options = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": folder.name, "id": run_id}
    options |= {"group": f"{args.env_id}__{ALGORITHM}__{arm(args)['arm']}", "job_type": "train", "dir": str(folder)}
    options |= {"tags": [args.env_id, ALGORITHM, args.prune_type], "resume": "allow"}
    options["config"] = config["options"] | config["resolved"] | arm(args) | {"device_name": config["device_name"]}
    run = init_wandb(**options)
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def plain_state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """Contiguous fp32 copies on the CPU: a file that any fresh network of the same shape can load."""
    return {name: t.detach().float().cpu().contiguous().clone() for name, t in network.state_dict().items()}


def evaluation_copy(args, state: dict) -> nn.Module:
    """A fresh fp32 network with the weights of this moment, as a reader of model.pt would build it."""
    with seeded(0):
        network = type(state["network"])(state["games"].num_actions, args.hidden_size)
    network.load_state_dict(plain_state_dict(state["network"]))
    return network.to(state["device"])


def evaluate_moment(args, folder: Path, log: Log, state: dict, moment: str) -> None:
    """Play the evaluation games of a moment, with games and generators of their own, and write their rows to eval.csv."""
    if not args.eval_episodes:
        return
    evals = importlib.import_module(f"evals.{ALGORITHM}_eval")
    network, seed = evaluation_copy(args, state), derive_seed(args.seed, moment)  # the same seed in every arm
    log.stops_at_once(True)
    games = evals.evaluate(network, AtariGames, args.env_id, args.eval_episodes, seed, torch.get_num_threads())
    log.stops_at_once(False)
    state["eval"] += [{"moment": moment, "global_step": state["global_step"], **game} for game in games]
    file = io.StringIO()
    writer = csv.DictWriter(file, state["eval"][0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(state["eval"])
    write_atomically(folder / "eval.csv", file.getvalue().encode())
    log(state["global_step"], {f"eval/{moment}_return": sum(game["return"] for game in games) / len(games)})


def cut(args, folder: Path, log: Log, state: dict) -> None:
    """Evaluate, prune the network once, evaluate. Called between two iterations: nothing is in flight to the emulator."""
    if args.prune_type == "none" and args.fork_from is None:
        save_checkpoint(folder / "prune_point.pt", log, state)
    evaluate_moment(args, folder, log, state, "before_prune")
    network = state["network"]
    purpose = "mask" if args.fork_seed is None else f"mask of fork {args.fork_seed}"
    tensors, seed = prunable(network, args.prune_bias), derive_seed(args.seed, purpose)
    state["masks"] |= make_masks(tensors, args.prune_type, args.prune_rate, args.prune_scope, seed)
    apply_masks(network, state["optimizer"], state["masks"])
    if "target_network" in state:  # in every arm, none included, so that arms differ by the mask alone
        state["target_network"].load_state_dict(network.state_dict())
    renew(*state["working"])
    counts = count_tensors(network, state["masks"])
    total, pruned = (sum(c[key] for c in counts.values()) for key in ("total", "pruned"))
    state["sparsity"] = pruned / total
    state["emptied"] = [name for name, c in counts.items() if c["pruned"] == c["total"]]
    for name in state["emptied"]:
        print(f"warning: pruning removed every entry of {name}", file=sys.stderr)
    shares = {f"prune/sparsity_{name}": c["pruned"] / c["total"] for name, c in counts.items()}
    log(state["global_step"], {"prune/sparsity": state["sparsity"], **shares})
    evaluate_moment(args, folder, log, state, "after_prune")
    log.new_lap(state["global_step"], warm=state["device"] == "cpu")


def finish(args, folder: Path, log: Log, state: dict) -> None:
    """Save and evaluate the final network, count what the cut cost and gained, close the logs; summary.json comes last."""
    evaluate_moment(args, folder, log, state, "final")  # a signal after it is too late: the run is finished first
    weights, counts = plain_state_dict(state["network"]), count_tensors(state["network"], state["masks"])
    totals = {key: sum(c[key] for c in counts.values()) for key in ("total", "pruned", "nonzero")}
    model, files = io.BytesIO(), []
    torch.save(weights, model)
    summary = arm(args) | {"global_step": state["global_step"], "agent_steps_run": state["global_step"] - log.first_step}
    summary |= totals | {"sparsity": totals["pruned"] / totals["total"], "emptied": state["emptied"], "tensors": counts}
    summary["resident_bytes"] = sum(t.numel() * t.element_size() for t in weights.values())
    summary["disk"] = {"dense": model.tell()}
    if args.save_model:
        write_atomically(folder / "model.pt", model.getvalue())
        files.append(folder / "model.pt")
    if EVALS.is_dir():
        games, storage = (importlib.import_module(f"evals.{name}") for name in ("games", "storage"))
        summary |= games.summarise(evaluation_copy(args, state), state["eval"])
        if args.save_model:
            files.append(folder / "model_packed.npz")
            write_atomically(files[-1], storage.pack(weights))
        if args.capture_video:
            files.append(folder / "final.mp4")
            seed = derive_seed(args.seed, "video")
            policy = importlib.import_module(f"evals.{ALGORITHM}_eval").make_policy(evaluation_copy(args, state), seed)
            games.record_video(policy, args.env_id, atari_spec(args.env_id), seed, files[-1])
    log(state["global_step"], {f"disk/{name}_bytes": size for name, size in summary["disk"].items()})
    steps, seconds = log.learned
    summary["time"] = {
        "agent_steps_per_second_while_learning": steps / seconds if seconds else None,
        "wall_seconds": log.seconds + time.monotonic() - log.started,
        "peak_ram_bytes": peak_ram_bytes(),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if state["device"] == "cuda" else None,
        "mean_gpu_utilisation_percent": float(np.mean(log.gpu_utilisation)) if log.gpu_utilisation else None,
    }
    log.close(summary, state["eval"], files)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    for path in folder.glob("checkpoint*"):
        path.unlink()
    for number, handler in log.handlers_before.items():
        signal.signal(number, handler)


# -------------------------------------------------------------------------------------------------------- shared: device
class Inbox:
    """Arrays that the host fills and the device reads, each at an address that stays; on a GPU one copy brings all of them.

    `inbox.tensors[name]` lies on the device; `put(name=array, ...)` fills and sends, on a GPU from pinned memory, which must
    not be filled again before that copy is done: actions that came back to the host show that it is.
    """

    def __init__(self, device: torch.device, **arrays: np.ndarray):
        sizes = {name: -(-array.nbytes // 8) * 8 for name, array in arrays.items()}  # aligned for every type
        self.host = torch.empty(sum(sizes.values()), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.sent = self.host.to(device)  # on the CPU the same memory
        self.arrays, self.tensors, start = {}, {}, 0
        for name, array in arrays.items():
            end = start + array.nbytes
            self.arrays[name] = self.host[start:end].numpy().view(array.dtype).reshape(array.shape)
            self.tensors[name] = self.sent[start:end].view(torch.from_numpy(array).dtype).view(array.shape)
            start += sizes[name]
        self.put(**arrays)

    def put(self, **arrays) -> None:
        for name, array in arrays.items():
            self.arrays[name][...] = array
        if self.sent is not self.host:
            self.sent.copy_(self.host, non_blocking=True)


def make_adam(network: nn.Module, learning_rate: float, eps: float) -> torch.optim.Adam:
    """Fused Adam whose state and learning rate (a tensor: a graph would keep the value of a float) are there from the start."""
    device = next(network.parameters()).device
    rate = torch.tensor(learning_rate, device=device)
    adam = torch.optim.Adam(network.parameters(), lr=rate, eps=eps, fused=True, capturable=device.type == "cuda")
    for p in network.parameters():
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        adam.state[p] = {"step": torch.zeros((), device=device)} | moments
    return adam


def live_tensors(state: dict) -> dict[str, torch.Tensor]:
    """Weights, moments and DQN's last losses by name: the memory itself that the networks and Adam work on."""
    parts = {name: state[name].state_dict() for name in ("network", "target_network") if name in state}
    moments = {name: state["optimizer"].state[p] for name, p in state["network"].named_parameters()}
    tensors = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
    tensors |= {f"optimizer.{name}.{key}": t for name, kept in moments.items() for key, t in kept.items()}
    return tensors | ({"losses": state["losses"]} if "losses" in state else {})


def capture(function, state: dict):
    """On a GPU the function as the replay of one CUDA graph; on the CPU the function itself.

    It takes nothing, works on tensors that stay where they are, and what it returns is overwritten by its next call. The
    calls that warm it up are undone: weights, moments, working copies and generators are put back.
    """
    if state["device"] != "cuda":
        return function
    tensors, generators = list(live_tensors(state).values()), state["generators"]
    kept, states = [t.clone() for t in tensors], [g.get_state() for g in generators]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outputs = function()
    torch._foreach_copy_(tensors, kept)
    renew(*state["working"])
    for generator, before in zip(generators, states, strict=True):
        generator.set_state(before)

    def replay():
        graph.replay()
        return outputs

    return replay


# --------------------------------------------------------------------------------------------------------------- network
def scaled(obs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 frames as [0, 1] in dtype, channels last; frames that are scaled already (PPO keeps them) as they are."""
    if obs.is_floating_point():
        return obs
    return obs.contiguous(memory_format=torch.channels_last).to(dtype).div_(255)


def working_copy(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What computes: in fp32 the network itself; else a copy of it in dtype, whose gradients arrive at the network in fp32.

    The network keeps the master weights (https://arxiv.org/abs/1710.03740). Its heads are shared and stay fp32: values between
    2 and 4 would come in steps of 1/64 in bf16.
    """
    if dtype == torch.float32:
        return network
    working = copy.deepcopy(network).to(dtype)
    for head in network.HEADS:
        setattr(working, head, getattr(network, head))

    def deliver(master: nn.Parameter, gradient: torch.Tensor, low: nn.Parameter) -> None:
        master.grad, low.grad = gradient.copy_(low.grad), None

    for master, low in zip(network.parameters(), working.parameters(), strict=True):
        if low is not master and low.requires_grad:
            low.register_post_accumulate_grad_hook(partial(deliver, master, torch.empty_like(master)))
    return working


@torch.no_grad()
def renew(*pairs: tuple[nn.Module, nn.Module]) -> None:
    """For each pair of a working copy and its network: round the master weights into the copy."""
    for working, network in pairs:
        for low, master in zip(working.parameters(), network.parameters(), strict=True):
            low.copy_(master)


class FoldedConv2d(nn.Conv2d):
    """nn.Conv2d with space-to-depth along the rows: `stride` pixels are read as one of `stride` times the channels.

    Views alone, if all is channels last. The same sums, but oneDNN takes gradients of a layer without horizontal stride up to
    1.4 times as fast in fp32 and 1.2 in bf16 (results/LOG.md). The stride has to divide the width of input and kernel.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, across = self.stride

        def fold(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(3, (-1, across)).movedim(4, 1).flatten(1, 2)

        return F.conv2d(fold(x), fold(self.weight), self.bias, stride=(down, 1))


def orthogonal(layer: nn.Module, std: float = math.sqrt(2)) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class Agent(nn.Module):
    """Policy and value on one body: (batch, 4, 84, 84) frames to fp32 logits (batch, num_actions), values (batch,).

    Frames are uint8, or scaled already.
    """

    HEADS = ("actor", "critic")

    def __init__(self, num_actions: int, hidden_size: int = 512):
        super().__init__()
        self.conv1 = orthogonal(FoldedConv2d(4, 32, 8, stride=4))
        self.conv2 = orthogonal(FoldedConv2d(32, 64, 4, stride=2))
        self.conv3 = orthogonal(nn.Conv2d(64, 64, 3, stride=1))
        self.fc1 = orthogonal(nn.Linear(3136, hidden_size))
        self.actor = orthogonal(nn.Linear(hidden_size, num_actions), std=0.01)
        self.critic = orthogonal(nn.Linear(hidden_size, 1), std=1.0)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.conv1(scaled(obs, self.conv1.weight.dtype)), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        x = F.relu(self.conv3(x).flatten(1), inplace=True)
        x = F.relu(self.fc1(x), inplace=True)
        x = x.float()
        return self.actor(x), self.critic(x).squeeze(1)


# ------------------------------------------------------------------------------------------------------------- algorithm
def sample_actions(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw actions (num_envs,) from the softmax of logits (num_envs, num_actions): the first of exponential clocks to ring."""
    clocks = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(dim=1) / clocks).argmax(dim=1)


def log_prob(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Log-probability (batch,) of actions (batch,) under logits (batch, num_actions)."""
    return logits.log_softmax(dim=1).gather(1, actions[:, None]).squeeze(1)


def compute_gae(rewards, values, terminations, next_value, gamma: float, gae_lambda: float) -> torch.Tensor:
    """Generalised advantage estimation (https://arxiv.org/abs/1506.02438), (num_steps, num_envs).

    terminations[t] says that the step from t ended a life or a game: nothing after it counts. next_value (num_envs,) is the
    value of the observation after the last step. values + advantages are the returns that the critic is trained on.
    """
    going_on = 1.0 - terminations.float()
    deltas = rewards + gamma * torch.cat([values[1:], next_value[None]]) * going_on - values
    decays = gamma * gae_lambda * going_on
    advantages = deltas.clone()
    for t in reversed(range(len(rewards) - 1)):
        advantages[t].addcmul_(decays[t], advantages[t + 1])
    return advantages


def policy_loss(advantages: torch.Tensor, ratio: torch.Tensor, clip_coef: float) -> torch.Tensor:
    """The clipped surrogate objective, as a loss."""
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef)).mean()


def value_loss(new_values, values, returns, clip_coef: float, clip_vloss: bool) -> torch.Tensor:
    """Half the squared error; clipped, the larger of it and that of a value moved by at most clip_coef."""
    squared = (new_values - returns) ** 2
    if clip_vloss:
        clipped = values + (new_values - values).clamp(-clip_coef, clip_coef)
        squared = torch.max(squared, (clipped - returns) ** 2)
    return 0.5 * squared.mean()


def update(agent, working, optimizer, masks, minibatch, args) -> dict[str, torch.Tensor]:
    """One gradient update from a minibatch: obs (n, 4, 84, 84) and actions, logprobs, advantages, returns, values (n,).

    `working` computes (`working_copy`); `agent` has the weights that Adam moves.
    """
    obs, actions, logprobs, advantages, returns, values = minibatch
    logits, new_values = working(obs)
    logratio = log_prob(logits, actions) - logprobs
    ratio = logratio.exp()
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    pg_loss = policy_loss(advantages, ratio, args.clip_coef)
    v_loss = value_loss(new_values, values, returns, args.clip_coef, args.clip_vloss)
    entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    optimizer.zero_grad()
    (pg_loss - args.ent_coef * entropy + args.vf_coef * v_loss).backward()
    mask_gradients(agent, masks)
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    optimizer.step()
    renew((working, agent))
    with torch.no_grad():
        approx_kl = ((ratio - 1) - logratio).mean()  # http://joschu.net/blog/kl-approx.html
        clipfrac = ((ratio - 1).abs() > args.clip_coef).float().mean()
    losses = {"policy_loss": pg_loss, "value_loss": v_loss, "entropy": entropy, "approx_kl": approx_kl, "clipfrac": clipfrac}
    return {name: value.detach() for name, value in losses.items()}


# -------------------------------------------------------------------------------------------------------------- training
def train(args: Args) -> Path:
    """Train, prune at the cut, go on, save and summarise. Returns the run folder."""
    folder, config, _lock = open_run(args)
    if config is None:
        return folder
    resolved = config["resolved"]
    device, dtype = torch.device(resolved["device"]), {"bf16": torch.bfloat16, "fp32": torch.float32}[resolved["precision"]]
    torch.set_flush_denormal(True)  # Adam's moments of dead weights decay into denormals, which made its step 15 times slower
    torch.set_num_threads(resolved["num_threads"])
    torch.backends.cudnn.deterministic = args.torch_deterministic

    games = AtariGames(args.env_id, args.num_envs, derive_seed(args.seed, "games"), resolved["num_threads"])
    with seeded(derive_seed(args.seed, "network")):
        agent = Agent(games.num_actions, args.hidden_size)
    agent = agent.to(device, memory_format=torch.channels_last)
    working = working_copy(agent, dtype)
    optimizer = make_adam(agent, args.learning_rate, eps=1e-5)
    act_generator = torch.Generator(device).manual_seed(derive_seed(args.seed, "actions"))
    batch_generator = torch.Generator(device).manual_seed(derive_seed(args.seed, "minibatches"))
    state = {"network": agent, "working": [(working, agent)], "optimizer": optimizer, "masks": {}, "games": games}
    state |= {"generators": [act_generator, batch_generator], "global_step": 0, "eval": [], "emptied": []}
    state |= {"sparsity": 0.0, "device": device.type}
    log = begin(args, folder, config, state)
    masks = state["masks"]

    rollout = (args.num_steps, args.num_envs)
    newest = Inbox(device, t=np.zeros(1, np.int64), obs=games.obs)  # sent every step; what followed is sent once a rollout
    followed = Inbox(device, rewards=np.zeros(rollout, np.float32), terminations=np.zeros(rollout, bool))
    rewards, terminations = followed.arrays["rewards"], followed.arrays["terminations"]
    obs = torch.zeros(*rollout, 84, 84, 4, dtype=dtype, device=device)  # channels last and scaled, as the network reads them
    actions = torch.zeros(rollout, dtype=torch.int64, device=device)
    logprobs, values, advantages, returns = (torch.zeros(rollout, device=device) for _ in range(4))
    b_rollout = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns, values)]
    minibatch = [torch.zeros_like(x[: args.steps_per_iteration // args.num_minibatches]) for x in b_rollout]
    mb_inds = torch.zeros(len(minibatch[0]), dtype=torch.int64, device=device)

    def act() -> torch.Tensor:
        frames = scaled(newest.tensors["obs"], dtype)
        with torch.no_grad():
            logits, value = working(frames)
        action = sample_actions(logits, act_generator)
        taken = (frames.movedim(1, -1), action, log_prob(logits, action), value)
        for memory, part in zip((obs, actions, logprobs, values), taken, strict=True):
            memory.index_copy_(0, newest.tensors["t"], part[None])
        return action

    def judge() -> None:
        with torch.no_grad():
            next_value = working(newest.tensors["obs"])[1]
        sent = followed.tensors
        advantages.copy_(compute_gae(sent["rewards"], values, sent["terminations"], next_value, args.gamma, args.gae_lambda))
        torch.add(advantages, values, out=returns)

    def learn() -> dict[str, torch.Tensor]:
        for x, mb in zip(b_rollout, minibatch, strict=True):
            torch.index_select(x, 0, mb_inds, out=mb)
        return update(agent, working, optimizer, masks, (minibatch[0].movedim(-1, 1), *minibatch[1:]), args)

    @cache
    def graph(function):
        return capture(function, state)

    done, num_iterations = (steps // args.steps_per_iteration for steps in (state["global_step"], args.total_timesteps))
    for iteration in range(done + 1, num_iterations + 1):
        learning_rate = args.learning_rate * (1.0 - (iteration - 1) / num_iterations if args.anneal_lr else 1.0)
        optimizer.param_groups[0]["lr"].fill_(learning_rate)

        for t in range(args.num_steps):
            newest.put(t=t, obs=games.obs)
            games.send(graph(act)().cpu().numpy())
            step = games.receive()
            rewards[t], terminations[t] = np.sign(step.rewards), step.terminations
            if step.truncations.any():  # the game went on after its last frame: what would have followed is worth V(final_obs)
                with torch.no_grad():
                    final_values = working(torch.from_numpy(step.final_obs).to(device))[1].cpu().numpy()
                truncated = step.truncations & ~step.terminations
                rewards[t] += args.gamma * final_values * truncated
                terminations[t] |= truncated
            state["global_step"] += args.num_envs
            log.games(state["global_step"], step.finished)

        newest.put(obs=games.obs)
        followed.put()
        graph(judge)()
        clipfracs = []
        for _epoch in range(args.update_epochs):
            order = torch.randperm(args.steps_per_iteration, generator=batch_generator, device=device)
            for inds in order.chunk(args.num_minibatches):
                mb_inds.copy_(inds)
                losses = graph(learn)()
                clipfracs.append(losses["clipfrac"].clone())
            if args.target_kl is not None and losses["approx_kl"] > args.target_kl:
                break

        explained = 1 - (returns - values).var() / returns.var()
        losses = losses | {"clipfrac": torch.stack(clipfracs).mean(), "explained_variance": explained}
        numbers = torch.stack(list(losses.values())).tolist()  # read back at once
        metrics = {f"losses/{name}": number for name, number in zip(losses, numbers, strict=True)}
        speed = log.lap(state["global_step"], learning_starts=0)
        log(state["global_step"], metrics | {"charts/learning_rate": learning_rate}, {"charts/SPS": speed})
        log.progress(state["global_step"], speed, state["sparsity"])
        if iteration == cut_iteration(args):
            cut(args, folder, log, state)
            graph.cache_clear()  # the masks are new
        pause(args, folder, log, state)
    finish(args, folder, log, state)
    return folder


def main() -> None:
    args = tyro.cli(Args)
    try:
        train(args)
    except (UserError, Busy, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 75 if isinstance(error, Busy) else 1)
    except Stop as stop:
        sys.exit(128 + stop.args[0])
    except KeyboardInterrupt:  # before the run began
        sys.exit(130)


if __name__ == "__main__":
    main()
