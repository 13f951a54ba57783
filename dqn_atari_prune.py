"""Train DQN on an Atari game, prune the network once in the middle of training, go on, and log what it cost and gained.

Algorithm: Mnih et al. 2015 (https://www.nature.com/articles/nature14236), with the hyperparameters and loss of CleanRL's
dqn_atari.py. Cut: one-shot magnitude (`l1`) or random unstructured pruning of every convolution and linear layer, at the
end of the first step of all games at which `--prune-at` of the training is done; pruned entries stay exactly zero.

    python dqn_atari_prune.py --env-id SpaceInvadersNoFrameskip-v4 --prune-type l1 --prune-rate 0.5 --seed 1

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

ALGORITHM = "dqn"


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
    learning_rate: float = 1e-4
    """step size of Adam"""
    num_envs: int = 8
    """games played at once; the ratio of updates to agent steps does not depend on it"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer (7,061 bytes each), rounded down to a multiple of num_envs"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    tau: float = 1.0
    """share of the online network in the target network at a sync, in (0, 1]"""
    target_network_frequency: int = 1000
    """agent steps between two syncs of the target network"""
    batch_size: int = 32
    """transitions of a minibatch"""
    start_e: float = 1.0
    """epsilon at the start, in [0, 1]"""
    end_e: float = 0.01
    """epsilon at the end of the exploration, in [0, 1]"""
    exploration_fraction: float = 0.10
    """share of the training, in (0, 1], over which epsilon falls from start_e to end_e"""
    learning_starts: int = 80_000
    """agent steps before the first gradient update"""
    train_frequency: int = 4
    """agent steps per gradient update"""

    def __post_init__(self):
        rules = {"be at least 1": "batch_size train_frequency target_network_frequency"}
        check_options(self, rules | {"lie in [0, 1]": "start_e end_e", "lie in (0, 1]": "tau exploration_fraction"})
        first = f"be at least --num-envs ({self.num_envs}) and below --total-timesteps ({self.total_timesteps})"
        require(self.num_envs <= self.learning_starts < self.total_timesteps, "learning_starts", first, self.learning_starts)
        least = max(self.batch_size, MIN_SLOTS * self.num_envs)
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // TRANSITION_BYTES
        holds = (
            f"hold a minibatch and {MIN_SLOTS} transitions a game ({least}), and fit into the memory of this machine ({most})"
        )
        require(least <= self.buffer_size <= most, "buffer_size", holds, self.buffer_size)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs


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


class QNetwork(nn.Module):
    """The convolutional network of Mnih et al. 2015: (batch, 4, 84, 84) uint8 frames to (batch, num_actions) fp32 values."""

    HEADS = ("fc2",)

    def __init__(self, num_actions: int, hidden_size: int = 512):
        super().__init__()
        self.conv1 = FoldedConv2d(4, 32, 8, stride=4)
        self.conv2 = FoldedConv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=1)
        self.fc1 = nn.Linear(3136, hidden_size)
        self.fc2 = nn.Linear(hidden_size, num_actions)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(scaled(obs, self.conv1.weight.dtype)), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        x = F.relu(self.conv3(x).flatten(1), inplace=True)
        x = F.relu(self.fc1(x), inplace=True)
        return self.fc2(x.float())


# ------------------------------------------------------------------------------------------------------------- algorithm
MIN_SLOTS = 8  # of each game: the four oldest are not sampled and the newest has no successor yet
TRANSITION_BYTES = 84 * 84 + 5  # a frame, its age, action, clipped reward and two flags


class ReplayBuffer:
    """A ring of single frames; stacks are put together when they are sampled. The games take turns: place p is followed by
    p + num_envs of the same game.

    A place holds the newest frame of an observation and its facts: age (frames of the game before it, up to 3: the stack
    reaches no further back), and what followed: action, clipped reward, termination, truncation.
    """

    def __init__(self, buffer_size: int, num_envs: int, device: torch.device | str):
        self.num_envs, self.places = num_envs, buffer_size // num_envs * num_envs
        self.frames = torch.empty(self.places, 84, 84, dtype=torch.uint8, device=device)
        self.facts = torch.zeros(self.places, 5, dtype=torch.int8, device=device)
        self.head = 0  # the place of the first game's newest frame, whose facts are still to come
        self.size = 0  # places that hold whole transitions
        self.ages = np.zeros(num_envs, np.int8)
        self.back = torch.arange(-3, 2, device=device) * num_envs  # (5,): the frames of obs and next_obs
        self.oldest = torch.arange(3, -2, -1, dtype=torch.int8, device=device)  # (5,): the age from which each belongs to it

    def start(self, obs: torch.Tensor) -> None:
        """Store the first frames, (num_envs, 4, 84, 84)."""
        self.frames[: self.num_envs] = obs[:, -1]

    def advance(self, actions: np.ndarray, step: Step) -> dict[str, np.ndarray]:
        """Move the head past a step of the games; what `store` and `sample` need to know of it, as arrays."""
        facts = [self.ages, actions, np.sign(step.rewards), step.terminations, step.truncations]
        each, here, self.head = np.arange(self.num_envs), self.head, (self.head + self.num_envs) % self.places
        self.ages = np.where(step.game_starts, 0, np.minimum(self.ages + 1, 3)).astype(np.int8)
        self.size = min(self.size + self.num_envs, self.places - self.num_envs)
        places, facts = np.stack([here + each, self.head + each]), np.stack(facts, axis=1).astype(np.int8)
        return {"obs": step.obs, "facts": facts, "places": places, "window": self.window()}

    def window(self) -> np.ndarray:
        """First place that may be sampled and how many may; in a full ring the stacks of the oldest reach over the head."""
        skipped = 4 * self.num_envs if self.size == self.places - self.num_envs else 0
        return np.array([(self.head - self.size + skipped) % self.places, self.size - skipped])

    def state_dict(self) -> dict:
        used = self.places if self.size == self.places - self.num_envs else self.head + self.num_envs
        frames = [compress(self.frames[k : used : self.num_envs]) for k in range(self.num_envs)]
        kept = {"head": self.head, "size": self.size, "ages": self.ages.tolist(), "frames": frames}
        return kept | {"facts": self.facts[:used].cpu()}

    def load_state_dict(self, kept: dict) -> None:
        used = len(kept["facts"])
        for k, blocks in enumerate(kept["frames"]):
            decompress(blocks, self.frames[k : used : self.num_envs])
        self.facts[:used] = kept["facts"]
        self.head, self.size, self.ages = kept["head"], kept["size"], np.array(kept["ages"], np.int8)

    def store(self, obs: torch.Tensor, facts: torch.Tensor, places: torch.Tensor) -> None:
        """Complete the transitions at places[0] with their facts and put the frames that followed at places[1]."""
        self.facts.index_copy_(0, places[0], facts)
        self.frames.index_copy_(0, places[1], obs[:, -1])

    def sample(self, batch_size: int, window: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Uniform transitions: obs, actions, rewards, next_obs, terminations; obs (batch, 4, 84, 84) uint8, else (batch,).

        The frame after a truncated transition is of another game, so its predecessor is drawn in its place. The next_obs of
        a game that is over is not to be used.
        """
        draws = torch.randint(2**62, (batch_size,), generator=generator, device=self.frames.device)
        places = (window[0] + draws % window[1]) % self.places
        places = (places - self.facts[places, 4].long() * self.num_envs) % self.places
        facts = self.facts[places]
        stack = (places[:, None] + self.back) % self.places  # (batch, 5)
        frames = self.frames.index_select(0, stack.flatten()).view(batch_size, 5, 84, 84)
        frames *= (facts[:, :1] >= self.oldest)[..., None, None]
        frames = frames.unbind(1)
        obs, next_obs = (torch.stack(four, dim=-1).movedim(-1, 1) for four in (frames[:4], frames[1:]))  # channels last
        return obs, facts[:, 1].long(), facts[:, 2].float(), next_obs, facts[:, 3].bool()


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    """Epsilon after t agent steps: from start_e to end_e in a straight line over `duration` agent steps, then end_e."""
    return end_e if t >= duration else start_e + (end_e - start_e) * t / duration


def crossings(before: int, after: int, every: int) -> int:
    """How many multiples of `every` lie in (before, after]: what is due when several games step at once."""
    return after // every - before // every


def epsilon_greedy(q_values: torch.Tensor, epsilon: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Actions (num_envs,) from values (num_envs, num_actions); draws the same numbers whether it uses them or not."""
    num_envs, num_actions = q_values.shape
    explore = torch.rand(num_envs, generator=generator, device=q_values.device) < epsilon
    random_actions = torch.randint(num_actions, (num_envs,), generator=generator, device=q_values.device)
    return torch.where(explore, random_actions, q_values.argmax(dim=1))


def td_target(next_q: torch.Tensor, rewards: torch.Tensor, terminations: torch.Tensor, gamma: float) -> torch.Tensor:
    """r + gamma * max_a Q_target(s', a), and r alone where s' is terminal. next_q (batch, num_actions), else (batch,)."""
    return rewards + gamma * next_q.amax(dim=1) * (1.0 - terminations.float())


@torch.no_grad()
def sync_target(target_network: nn.Module, q_network: nn.Module, tau: float) -> None:
    """target = tau * online + (1 - tau) * target; tau 1 copies."""
    for target, online in zip(target_network.parameters(), q_network.parameters(), strict=True):
        target.copy_(online) if tau == 1.0 else target.lerp_(online, tau)


def update(
    q_network, working, target_network, optimizer, masks, batch, batch_size: int, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient update for each batch_size transitions of a batch (ReplayBuffer.sample), whose TD targets are computed once.

    `working` and `target_network` compute (`working_copy`); `q_network` has the weights that Adam moves. Returns the TD loss of
    the last update and the mean Q value of its actions.
    """
    obs, actions, rewards, next_obs, terminations = batch
    with torch.no_grad():
        target = td_target(target_network(next_obs), rewards, terminations, gamma)
    for mb_obs, mb_actions, mb_target in zip(*(t.split(batch_size) for t in (obs, actions, target)), strict=True):
        q_values = working(mb_obs).gather(1, mb_actions[:, None]).squeeze(1)  # (batch_size,)
        loss = F.mse_loss(q_values, mb_target)
        optimizer.zero_grad()
        loss.backward()
        mask_gradients(q_network, masks)
        optimizer.step()
        renew((working, q_network))
    return loss.detach(), q_values.detach().mean()


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
        q_network = QNetwork(games.num_actions, args.hidden_size)
    q_network = q_network.to(device, memory_format=torch.channels_last)
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    working, target_working = (working_copy(network, dtype) for network in (q_network, target_network))
    optimizer = make_adam(q_network, args.learning_rate, eps=1e-8)
    if device.type == "cuda":
        most = torch.cuda.mem_get_info()[0] // TRANSITION_BYTES
        require(args.buffer_size < most, "buffer_size", f"fit into the free memory of the GPU ({most})", args.buffer_size)
    buffer = ReplayBuffer(args.buffer_size, args.num_envs, device)
    act_generator = torch.Generator(device).manual_seed(derive_seed(args.seed, "actions"))
    batch_generator = torch.Generator(device).manual_seed(derive_seed(args.seed, "minibatches"))
    state = {"network": q_network, "target_network": target_network, "optimizer": optimizer, "masks": {}, "games": games}
    state |= {"buffer": buffer, "generators": [act_generator, batch_generator], "global_step": 0, "eval": [], "emptied": []}
    state |= {"working": [(working, q_network), (target_working, target_network)]}
    state |= {"losses": torch.zeros(2, device=device), "sparsity": 0.0, "device": device.type}
    schedule = partial(linear_schedule, args.start_e, args.end_e, args.exploration_fraction * args.total_timesteps)
    buffer.start(torch.from_numpy(games.obs))
    log = begin(args, folder, config, state)
    masks = state["masks"]

    blank = {"facts": np.zeros((args.num_envs, 5), np.int8), "places": np.zeros((2, args.num_envs), np.int64)}
    inbox = Inbox(
        device, window=buffer.window(), epsilon=np.array([schedule(state["global_step"])], np.float32), obs=games.obs, **blank
    )
    sent = inbox.tensors

    def act() -> torch.Tensor:
        with torch.no_grad():
            q_values = working(sent["obs"])
        return epsilon_greedy(q_values, sent["epsilon"], act_generator)

    def store() -> None:
        buffer.store(sent["obs"], sent["facts"], sent["places"])

    def learn(updates: int) -> None:
        batch = buffer.sample(updates * args.batch_size, sent["window"], batch_generator)
        losses = update(q_network, working, target_working, optimizer, masks, batch, args.batch_size, args.gamma)
        state["losses"].copy_(torch.stack(losses))

    @cache
    def graph(function, *constants):
        return capture(partial(function, *constants), state)

    done = state["global_step"] // args.steps_per_iteration
    for iteration in range(done + 1, args.total_timesteps // args.steps_per_iteration + 1):
        before, after = state["global_step"], state["global_step"] + args.num_envs
        actions = graph(act)().cpu().numpy()
        games.send(actions)  # the emulator's threads step while the network learns from what is stored
        learned = [max(steps, args.learning_starts) for steps in (before, after)]
        if due := crossings(*learned, args.train_frequency):
            graph(learn, due)()
        for _ in range(crossings(*learned, args.target_network_frequency)):
            sync_target(target_network, q_network, args.tau)
            renew((target_working, target_network))
        step = games.receive()
        inbox.put(**buffer.advance(actions, step), epsilon=schedule(after))
        graph(store)()

        state["global_step"] = after
        log.games(after, step.finished)
        if crossings(before, after, 1000):
            speed = log.lap(after, args.learning_starts)
            metrics = {"charts/epsilon": schedule(before)}
            if after > args.learning_starts + args.train_frequency:
                metrics |= dict(zip(("losses/td_loss", "losses/q_values"), state["losses"].tolist(), strict=True))
            log(after, metrics, {"charts/SPS": speed})
            log.progress(after, speed, state["sparsity"])
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
