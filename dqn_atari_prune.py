"""Train DQN on an Atari game, prune its network once in the middle of training, continue training, and log costs and savings.

Algorithm: Mnih et al. 2015 (https://www.nature.com/articles/nature14236), with the loss and hyperparameters of CleanRL's
dqn_atari.py, except num_envs and total_timesteps.

The cut: when global_step reaches the share `--prune-at` of the training, the network is pruned once, by magnitude (`l1`) or at
random. Pruned weights and biases become zero and stay zero. With `-structured`, whole channels and hidden units are removed,
and training continues with a smaller network. `--prune-cuts N` prunes gradually instead, in N cuts. An arm is one pruning
setting; all arms of a seed are the same run until the cut.

    python dqn_atari_prune.py --env-id SpaceInvadersNoFrameskip-v4 --prune-type l1 --prune-rate 0.5 --seed 1

It writes runs/<run_name>/: config.json, source/, curves.csv, TensorBoard events, model.pt, eval.csv and, last, summary.json.
This file holds the whole algorithm and the pruning. What would be the same for any algorithm is in prune_utils/.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import zstandard
from torch.nn.utils import prune

from prune_utils.basics import Tensors, check, exit_codes, parse_options, say, seeded
from prune_utils.device import FoldedConv2d, Inbox, PreallocatedAdam, cores, graphed, low_precision, memory_bytes, scaled
from prune_utils.evaluation import Policy
from prune_utils.games import AtariGames, Step
from prune_utils.run import Run, check_common
from prune_utils.shrink import count_tensors, hidden_layers, remove_units


# --------------------------------------------------------------------------------------------------------------- options
@dataclass
class Args:
    exp_name: str = Path(__file__).stem
    """name of the script, as the default run name has it"""
    seed: int = 1
    """seed of everything random in the run, at least 0"""
    torch_deterministic: bool = True
    """use only deterministic cuDNN algorithms"""
    cuda: bool = True
    """use the GPU where there is one"""
    precision: Literal["auto", "bf16", "tf32", "fp32"] = "auto"
    """number format of the training; auto is tf32 on a GPU that has it, else fp32; bf16 is faster on CPUs with AVX-512 BF16"""
    num_threads: int = 0
    """CPU threads of the network and the emulator, 0 to 1024; 0 is all the cores that this process may use"""
    track: bool = False
    """log to Weights & Biases too; offline when it cannot be reached"""
    wandb_project_name: str = "atari-prune"
    """the W&B project"""
    wandb_entity: str | None = None
    """the W&B team or user; None is the account's default"""
    capture_video: bool = False
    """record one game of the final network as an mp4 in the run folder"""
    save_model: bool = True
    """keep the weights at the end: model.pt and model_packed.npz"""
    runs_dir: str = "runs"
    """folder that holds the run folders"""
    run_name: str | None = None
    """name of the run folder; None: made of game, script, arm, seed and the other options that shape the result"""
    overwrite: bool = False
    """start anew where a run of this name exists; without it an unfinished one resumes"""
    checkpoint_minutes: float = 10.0
    """minutes between checkpoints, at least 0 (also before the first and last evaluation); 0: only a dense cut and signals"""
    fork_from: str | None = None
    """run folder of a dense run, to continue from its cut; only options of pruning may differ from it, and not --prune-at"""
    fork_seed: int | None = None
    """with --fork-from: new draws of actions, minibatches and random masks; with --prune-type none as well, the A/A control"""
    until_cut: bool = False
    """stop a dense run at its cut, keeping its prune point for forks; the same command without it continues"""

    env_id: str = "SpaceInvadersNoFrameskip-v4"
    """Gymnasium id of an Atari game; sticky actions only if the id has them"""
    eval_episodes: int = 10
    """evaluation games at each of three moments (before the cut, right after it, at the end), at least 0; 0: none"""
    prune_type: Literal["none", "random", "l1", "random-structured", "l1-structured"] = "l1"
    """what to remove: nothing, random entries or the smallest in magnitude; structured: whole channels and hidden units"""
    prune_rate: float = 0.3
    """share to remove, in [0, 1): round(rate * n) of each tensor's n entries (global, erk: of all) or each layer's n units"""
    prune_at: float = 0.5
    """when to prune, as a share of the training, in [0, 1]: 0 is sparse from scratch, 1 is after training"""
    prune_cuts: int = 1
    """cuts from --prune-at to --prune-until, 1 to 1000, l1 and random only; by the cubic schedule of Zhu and Gupta 2017"""
    prune_until: float = 0.8
    """time of the last cut, as a share of the training, in [prune_at, 1]; used only if --prune-cuts is above 1"""
    prune_scope: Literal["layer", "global", "erk"] = "layer"
    """layer: each tensor loses the rate. l1 and random only: global ranks all tensors together, erk is Erdos-Renyi-Kernel"""
    prune_bias: bool = True
    """prune bias tensors too; structured types always remove a unit's bias"""
    prune_head: bool = True
    """prune the output layers too; structured types remove their inputs, never outputs"""
    hidden_size: int = 512
    """units of the hidden linear layer, 1 to 65536; a dense network with 83 has about the parameters that rate 0.8 leaves"""
    width: float = 1.0
    """factor, in (0, 16], on the channels and units of every hidden layer; below 1, a small dense network to compare with"""

    total_timesteps: int = 2_000_000
    """agent steps of the run, over all games (4 frames each), rounded down to whole iterations"""
    learning_rate: float = 1e-4
    """step size of Adam, above 0"""
    num_envs: int = 8
    """games played at once, at least 1; the ratio of updates to agent steps does not depend on it"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer (7,061 bytes each), rounded down to a multiple of num_envs"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    tau: float = 1.0
    """share of the online network in the target network at a sync, in (0, 1]"""
    target_network_frequency: int = 1000
    """agent steps between two syncs of the target network, at least 1"""
    batch_size: int = 32
    """transitions of a minibatch, at least 1"""
    start_e: float = 1.0
    """epsilon at the start, in [0, 1]"""
    end_e: float = 0.01
    """epsilon at the end of the exploration, in [0, 1]"""
    eval_epsilon: float = 0.01
    """epsilon of the evaluation games, in [0, 1]"""
    exploration_fraction: float = 0.10
    """share of the training, in (0, 1], over which epsilon falls from start_e to end_e"""
    learning_starts: int = 80_000
    """agent steps before the first gradient update, at least num_envs"""
    train_frequency: int = 4
    """agent steps per gradient update, at least 1"""

    def __post_init__(self):
        check_common(self)
        check(0 < self.tau <= 1, "tau", "lie in (0, 1]", self.tau)
        check(self.target_network_frequency >= 1, "target_network_frequency", "be at least 1", self.target_network_frequency)
        check(self.batch_size >= 1, "batch_size", "be at least 1", self.batch_size)
        check(self.train_frequency >= 1, "train_frequency", "be at least 1", self.train_frequency)
        check(0 <= self.start_e <= 1, "start_e", "lie in [0, 1]", self.start_e)
        check(0 <= self.end_e <= 1, "end_e", "lie in [0, 1]", self.end_e)
        check(0 <= self.eval_epsilon <= 1, "eval_epsilon", "lie in [0, 1]", self.eval_epsilon)
        check(0 < self.exploration_fraction <= 1, "exploration_fraction", "lie in (0, 1]", self.exploration_fraction)
        last = self.num_iterations * self.num_envs // self.train_frequency * self.train_frequency
        rule = f"be at least --num-envs ({self.num_envs}) and below the last gradient update of --total-timesteps ({last})"
        check(self.num_envs <= self.learning_starts < last, "learning_starts", rule, self.learning_starts)
        least = max(self.batch_size, MIN_SLOTS * self.num_envs)
        most = memory_bytes(self.cuda) // TRANSITION_BYTES
        rule = f"lie in {least} to {most}: at least a minibatch and {MIN_SLOTS} transitions per game, at most the memory here"
        check(least <= self.buffer_size <= most, "buffer_size", rule, self.buffer_size)

        cuts = cut_iterations(self)
        most = cuts[-1] - cuts[0] + 1
        check(len(cuts) <= most, "prune_cuts", f"be at most {most}, one per iteration until --prune-until", self.prune_cuts)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(max(1, round(self.width * units)) for units in (32, 64, 64, self.hidden_size))  # conv1 to conv3, fc1

    @property
    def num_iterations(self) -> int:
        return self.total_timesteps // self.steps_per_iteration

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs


# --------------------------------------------------------------------------------------------------------------- network
class QNetwork(nn.Module):
    """The convolutional network of Mnih et al. 2015: (batch, 4, 84, 84) uint8 frames to (batch, num_actions) fp32 values."""

    HEADS = ("fc2",)  # output layers: they lose no units, and low_precision keeps them in fp32

    def __init__(self, num_actions: int, widths: tuple[int, ...] = (32, 64, 64, 512)):
        super().__init__()
        c1, c2, c3, hidden = widths
        # FoldedConv2d is nn.Conv2d with the same parameters and function, and faster gradients on a CPU
        self.conv1 = FoldedConv2d(4, c1, 8, stride=4)
        self.conv2 = FoldedConv2d(c1, c2, 4, stride=2)
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=1)
        self.fc1 = nn.Linear(7 * 7 * c3, hidden)
        self.fc2 = nn.Linear(hidden, num_actions)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(scaled(obs, self.conv1.weight.dtype)), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        x = F.relu(self.conv3(x).flatten(1), inplace=True)
        x = F.relu(self.fc1(x), inplace=True)
        return self.fc2(x.float())

    def output_health(self, q_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is logged as health of the outputs: mean and standard deviation over observations and actions."""
        return {"q_mean": q_values.mean(), "q_std": q_values.std()}


# --------------------------------------------------------------------------------------------------------------- pruning
def cut_iterations(args: Args) -> list[int]:
    """After how many iterations each cut comes, rounded up: evenly spaced from prune_at to prune_until. Dense: one cut."""
    shares = np.linspace(args.prune_at, args.prune_until, 1 if args.prune_type == "none" else args.prune_cuts)
    return [math.ceil(share * args.num_iterations - 1e-6) for share in shares]  # a rounding error must not add an iteration


def rate_after(args: Args, cut: int) -> float:
    """Share pruned after a cut (1: the first): prune_rate * (1 - (1 - cut / prune_cuts)^3) (https://arxiv.org/abs/1710.01878)."""
    return args.prune_rate * (1 - (1 - cut / args.prune_cuts) ** 3)


def prunable(network: nn.Module, bias: bool = True, head: bool = True) -> Tensors:
    """Tensors that may be pruned, by name, in the network's order; biases and output layers only if asked for."""
    kinds = ("weight", "bias") if bias else ("weight",)
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    layers = [(name, layer) for name, layer in layers if head or name not in network.HEADS]
    return {f"{name}.{kind}": getattr(layer, kind).detach() for name, layer in layers for kind in kinds}


def erk_rates(tensors: Tensors, rate: float) -> dict[str, float]:
    """Share to prune of each tensor by Erdos-Renyi-Kernel (https://arxiv.org/abs/1911.11134); in all, `rate` of the entries go.

    A tensor keeps entries in proportion to the sum of its dimensions. One that would keep more than it has stays whole, and
    the others share the rest, as in google-research/rigl.
    """
    remaining, rates = (1 - rate) * sum(t.numel() for t in tensors.values()), {}
    dimensions = sum(sum(t.shape) for t in tensors.values())
    for name, t in sorted(tensors.items(), key=lambda item: -sum(item[1].shape) / item[1].numel()):  # whole ones first
        count = min(t.numel(), remaining * sum(t.shape) / dimensions)
        rates[name] = 1 - count / t.numel()
        remaining, dimensions = remaining - count, dimensions - sum(t.shape)
    return rates


def make_masks(tensors: Tensors, prune_type: str, rate: float, scope: str, seed: int, masks: Tensors | None = None) -> Tensors:
    """Float masks, 0 where an entry is pruned, by torch.nn.utils.prune; an empty dictionary for `none` and structured types.

    What earlier `masks` pruned stays pruned. The criterion chooses from the rest until round(rate * n) entries of each tensor
    are pruned. With scope `erk` the rates are those of erk_rates. With `global`, l1 ranks all tensors together, and random
    removes as many entries of each tensor as l1 would. Made on contiguous fp32 copies on the CPU: the same on every device.
    """
    if prune_type == "none" or prune_type.endswith("-structured"):
        return {}
    method = {"l1": prune.L1Unstructured, "random": prune.RandomUnstructured}[prune_type]
    flat = {name: t.float().cpu().flatten() for name, t in tensors.items()}  # in logical order, contiguous
    old_masks = {name: (masks or {}).get(name, torch.ones_like(t)).cpu().flatten() for name, t in tensors.items()}

    def prune_to(count: int, t: torch.Tensor, mask: torch.Tensor, criterion: type[prune.BasePruningMethod]) -> torch.Tensor:
        unpruned = mask > 0
        more = count - int((~unpruned).sum())
        return mask.masked_scatter(unpruned, criterion(more).compute_mask(t[unpruned], mask[unpruned]))

    rates = erk_rates(tensors, rate) if scope == "erk" else dict.fromkeys(tensors, rate)
    counts = {name: round(rates[name] * len(t)) for name, t in flat.items()}
    if scope == "global":  # of each tensor as many as l1 takes of it from all tensors together
        entries, old_mask = torch.cat(list(flat.values())), torch.cat(list(old_masks.values()))
        l1_mask = prune_to(round(rate * len(entries)), entries, old_mask, prune.L1Unstructured)
        parts = l1_mask.split([len(t) for t in flat.values()])
        counts = {name: int((part == 0).sum()) for name, part in zip(flat, parts, strict=True)}
    new_masks = {}
    for index, (name, t) in enumerate(flat.items()):
        with seeded(seed + index):  # a seed per tensor: no draw shifts another's
            new_masks[name] = prune_to(counts[name], t, old_masks[name], method)
    return {name: torch.empty_like(t, dtype=torch.float32).copy_(new_masks[name].view_as(t)) for name, t in tensors.items()}


def choose_units(network: nn.Module, prune_type: str, rate: float, seed: int) -> Tensors:
    """Which units of each hidden layer stay, (units,) bool, by torch.nn.utils.prune; empty unless the type is structured.

    round(rate * units) go, but never the last one: those with the least sum of weight magnitudes, or random ones.
    """
    if not prune_type.endswith("-structured"):
        return {}
    units = {}
    for index, (name, (layer, _)) in enumerate(hidden_layers(network).items()):
        weight = layer.weight.detach().float().cpu().contiguous()
        n = min(round(rate * len(weight)), len(weight) - 1)
        with seeded(seed + index):  # the draws of prune.RandomStructured, which removes too many units where draws are tied
            scores = weight if prune_type == "l1-structured" else torch.rand(len(weight), 1)
        units[name] = prune.LnStructured(n, n=1, dim=0).compute_mask(scores, torch.ones_like(scores)).flatten(1).any(dim=1)
    return units


@torch.no_grad()
def apply_masks(network: nn.Module, optimizer: torch.optim.Optimizer, masks: Tensors) -> None:
    """Set pruned entries to +0.0, and their Adam moments, which would move them off zero on the next step, to zero."""
    for name, mask in masks.items():
        p = network.get_parameter(name)
        moments = optimizer.state[p]  # PreallocatedAdam has them before its first step too
        for t in (p, moments["exp_avg"], moments["exp_avg_sq"]):
            t.masked_fill_(mask == 0, 0.0)
    network.load_state_dict(network.state_dict())  # renews a low-precision copy


def mask_gradients(network: nn.Module, masks: Tensors) -> None:
    """Zero the gradients of pruned entries, before any clipping: with zero moments, Adam moves them by 0 / (0 + eps) = 0."""
    if masks:
        torch._foreach_mul_([network.get_parameter(name).grad for name in masks], list(masks.values()))


# ------------------------------------------------------------------------------------------------------------- algorithm
MIN_SLOTS = 8  # per game, with slack: a full ring cannot sample its four oldest transitions and its newest frame
TRANSITION_BYTES = 84 * 84 + 5  # a frame and its metadata
AGE, ACTION, REWARD, TERMINATION, TRUNCATION = range(5)  # columns of the metadata


class ReplayBuffer:
    """A ring of single frames; stacks are put together when they are sampled. The games take turns, so the frame in slot p is
    followed by that in slot p + num_envs.

    A slot holds the newest frame of an observation, its age and what followed it. Age: how many frames of its game came before
    it, at most 3, as a stack needs. What followed: action, clipped reward, termination (of a life too), truncation.
    """

    def __init__(self, buffer_size: int, obs: torch.Tensor, device: torch.device | str):
        """Room for `buffer_size` frames, each game's newest included; the first ones come from obs (num_envs, 4, 84, 84)."""
        self.num_envs = num_envs = len(obs)
        self.slots = buffer_size // num_envs * num_envs
        self.capacity = self.slots - num_envs  # transitions: those of the newest frames are not known yet
        self.frames = torch.empty(self.slots, 84, 84, dtype=torch.uint8, device=device)
        self.metadata = torch.zeros(self.slots, 5, dtype=torch.int8, device=device)
        self.head = 0  # the slot of the first game's newest frame; its action and reward are not known yet
        self.size = 0  # slots that hold whole transitions
        self.ages = np.zeros(num_envs, np.int8)
        self.back = torch.arange(-3, 2, device=device) * num_envs  # (5,): the frames of obs and next_obs
        self.min_age = torch.arange(3, -2, -1, dtype=torch.int8, device=device)  # (5,): least age at which each is real
        self.frames[:num_envs] = obs[:, -1]

    def advance(self, actions: np.ndarray, step: Step) -> dict[str, np.ndarray]:
        """Move the head past a step of the games; returns what `store` and `sample` need of it, as arrays."""
        columns = [self.ages, actions, np.sign(step.rewards), step.terminations, step.truncations]
        metadata = np.stack(columns, axis=1).astype(np.int8)  # (num_envs, 5)
        completed = self.head + np.arange(self.num_envs)
        self.head = (self.head + self.num_envs) % self.slots
        newest = self.head + np.arange(self.num_envs)
        self.ages = np.where(step.game_starts, 0, np.minimum(self.ages + 1, 3)).astype(np.int8)
        self.size = min(self.size + self.num_envs, self.capacity)
        return {"obs": step.obs, "metadata": metadata, "slots": np.stack([completed, newest]), "window": self.window()}

    def window(self) -> np.ndarray:
        """First slot that may be sampled and how many may. In a full ring the four oldest of each game may not: three of them
        lack frames, and `sample` goes one back from a truncated transition, which may be the fourth."""
        skipped = 4 * self.num_envs if self.size == self.capacity else 0
        return np.array([(self.head - self.size + skipped) % self.slots, self.size - skipped])

    def store(self, obs: torch.Tensor, metadata: torch.Tensor, slots: torch.Tensor) -> None:
        """Complete the transitions at slots[0] with their metadata and put the frames that followed at slots[1]."""
        self.metadata.index_copy_(0, slots[0], metadata)
        self.frames.index_copy_(0, slots[1], obs[:, -1])

    def sample(self, batch_size: int, window: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Uniform transitions: obs, actions, rewards, next_obs, terminations; obs (batch, 4, 84, 84) uint8, else (batch,).

        A truncated transition has no valid next_obs, since the frame after it is of another game: the transition before it is
        drawn instead. The next_obs of a terminated one may be of another game too; td_target does not use it.
        """
        # a CUDA graph would freeze the bound of randint, and the buffer still grows
        draws = torch.randint(2**62, (batch_size,), generator=generator, device=self.frames.device)
        slots = (window[0] + draws % window[1]) % self.slots
        slots = (slots - self.metadata[slots, TRUNCATION].long() * self.num_envs) % self.slots
        metadata = self.metadata[slots]
        stack = (slots[:, None] + self.back) % self.slots  # (batch, 5)
        frames = self.frames.index_select(0, stack.flatten()).view(batch_size, 5, 84, 84)
        frames *= (metadata[:, AGE, None] >= self.min_age)[..., None, None]
        frames = frames.unbind(1)
        obs, next_obs = (torch.stack(four, dim=-1).movedim(-1, 1) for four in (frames[:4], frames[1:]))  # channels last
        return obs, metadata[:, ACTION].long(), metadata[:, REWARD].float(), next_obs, metadata[:, TERMINATION].bool()

    def state_dict(self) -> dict:
        """Each game's frames are compressed together, since consecutive ones resemble each other: 70-fold in SpaceInvaders."""
        used = self.slots if self.size == self.capacity else self.head + self.num_envs
        compress = zstandard.ZstdCompressor(threads=cores()).compress
        games = [self.frames[k : used : self.num_envs].split(4096) for k in range(self.num_envs)]
        frames = [[compress(block.contiguous().cpu().numpy()) for block in game] for game in games]
        state = {"head": self.head, "size": self.size, "ages": self.ages.tolist(), "frames": frames}
        return state | {"metadata": self.metadata[:used].cpu()}

    def load_state_dict(self, state: dict) -> None:
        used = len(state["metadata"])
        for k, game in enumerate(state["frames"]):
            for block, data in zip(self.frames[k : used : self.num_envs].split(4096), game, strict=True):
                block.copy_(torch.frombuffer(bytearray(zstandard.decompress(data)), dtype=torch.uint8).view_as(block))
        self.metadata[:used] = state["metadata"]
        self.head, self.size, self.ages = state["head"], state["size"], np.array(state["ages"], np.int8)


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    """Epsilon after t agent steps: from start_e to end_e in a straight line over `duration` agent steps, then end_e."""
    return end_e if t >= duration else start_e + (end_e - start_e) * t / duration


def crossings(before: int, after: int, every: int, start: int = 0) -> int:
    """How many multiples of `every` lie in (before, after] and above `start`: what is due when several games step at once."""
    return max(after, start) // every - max(before, start) // every


def epsilon_greedy(q_values: torch.Tensor, epsilon: torch.Tensor | float, generator: torch.Generator) -> torch.Tensor:
    """Actions (num_envs,) from values (num_envs, num_actions); always draws both numbers, used or not."""
    num_envs, num_actions = q_values.shape
    explore = torch.rand(num_envs, generator=generator, device=q_values.device) < epsilon
    random_actions = torch.randint(num_actions, (num_envs,), generator=generator, device=q_values.device)
    return torch.where(explore, random_actions, q_values.argmax(dim=1))


def make_policy(network: QNetwork, seed: int, epsilon: float = 0.01) -> Policy:
    """Epsilon-greedy actions for evaluation games, with a generator of its own."""
    device = network.fc2.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    return lambda obs: epsilon_greedy(network(obs.to(device)), epsilon, generator)


def td_target(next_q: torch.Tensor, rewards: torch.Tensor, terminations: torch.Tensor, gamma: float) -> torch.Tensor:
    """r + gamma * max_a Q_target(s', a), and r alone where s' is terminal. next_q (batch, num_actions), else (batch,)."""
    return rewards + gamma * next_q.amax(dim=1) * (1.0 - terminations.float())


@torch.no_grad()
def sync_target(target_network: nn.Module, q_network: nn.Module, tau: float) -> None:
    """target = tau * online + (1 - tau) * target; tau 1 copies."""
    target, online = target_network.state_dict(), q_network.state_dict()
    target_network.load_state_dict(online if tau == 1.0 else {name: t.lerp(online[name], tau) for name, t in target.items()})


def update(q_network, fast_q, fast_target, optimizer, masks, batch, batch_size: int, gamma: float) -> torch.Tensor:
    """One gradient update per batch_size transitions of a batch (ReplayBuffer.sample).

    The target network does not change in between, so all TD targets are computed at once. `fast_q` and `fast_target` run
    forward; gradients arrive at `q_network`, which Adam updates (`low_precision`). Returns (2,): the TD loss of the last update
    and the mean Q value of its actions.
    """
    obs, actions, rewards, next_obs, terminations = batch
    with torch.no_grad():
        target = td_target(fast_target(next_obs), rewards, terminations, gamma)
    for mb_obs, mb_actions, mb_target in zip(*(t.split(batch_size) for t in (obs, actions, target)), strict=True):
        q_values = fast_q(mb_obs).gather(1, mb_actions[:, None]).squeeze(1)  # (batch_size,)
        loss = F.mse_loss(q_values, mb_target)
        optimizer.zero_grad()
        loss.backward()
        mask_gradients(q_network, masks)
        optimizer.step()
    return torch.stack([loss.detach(), q_values.detach().mean()])


# -------------------------------------------------------------------------------------------------------------- training
def train(args: Args) -> Path:
    """Train, prune, continue training, evaluate and save. Returns the run folder."""
    run = Run(args, "dqn", __file__)
    if run.finished:
        return run.folder
    device = run.device

    games = AtariGames(args.env_id, args.num_envs, run.seed("games"), run.num_threads)
    with seeded(run.seed("network")):
        q_network = QNetwork(games.num_actions, args.widths)
    q_network = q_network.to(device, memory_format=torch.channels_last)
    target_network = copy.deepcopy(q_network).requires_grad_(False)
    optimizer = PreallocatedAdam(q_network.parameters(), lr=args.learning_rate, eps=1e-8)
    # what runs forward and backward: in fp32 the network itself, else a copy renewed by optimizer.step and load_state_dict
    fast_q, fast_target = low_precision(q_network, run.dtype, optimizer), low_precision(target_network, run.dtype)
    networks = [q_network, fast_q, target_network, fast_target]
    buffer = ReplayBuffer(args.buffer_size, torch.from_numpy(games.obs), device)
    act_generator, batch_generator = run.generator("actions"), run.generator("minibatches")
    masks: Tensors = {}  # of an unstructured cut; empty until then
    sizes = {name: t.numel() for name, t in prunable(q_network).items()}  # before the cut
    kept_units = run.saved_part("kept_units")  # of a structured cut; empty until then
    remove_units(kept_units, networks, optimizer)  # the shapes of a checkpoint, before its weights are restored
    last_losses = torch.zeros(2, device=device)  # TD loss and mean Q value of the last update
    make_eval_policy = partial(make_policy, epsilon=args.eval_epsilon)

    # the algorithm's part of a checkpoint; `resume` restores it from a checkpoint or prune point
    parts = {"q_network": q_network, "target_network": target_network, "optimizer": optimizer}
    parts |= {"masks": masks, "kept_units": kept_units, "games": games, "buffer": buffer, "last_losses": last_losses}
    parts |= {"act_generator": act_generator, "batch_generator": batch_generator}
    global_step = run.resume(parts)

    schedule = partial(linear_schedule, args.start_e, args.end_e, args.exploration_fraction * args.total_timesteps)
    metadata, slots = np.zeros((args.num_envs, 5), np.int8), np.zeros((2, args.num_envs), np.int64)
    epsilon = np.array([schedule(global_step)], np.float32)
    inbox = Inbox(device, window=buffer.window(), epsilon=epsilon, obs=games.obs, metadata=metadata, slots=slots)

    # on a GPU each call replays a CUDA graph, whose capture restores `changes`; on a CPU they are plain calls
    @graphed(device, changes=(act_generator,))
    @torch.no_grad()
    def act() -> torch.Tensor:
        return epsilon_greedy(fast_q(inbox["obs"]), inbox["epsilon"], act_generator)

    @graphed(device)
    def store() -> None:
        buffer.store(inbox["obs"], inbox["metadata"], inbox["slots"])

    @graphed(device, changes=(q_network, fast_q, optimizer, batch_generator))
    def learn(updates: int) -> None:
        batch = buffer.sample(updates * args.batch_size, inbox["window"], batch_generator)
        last_losses.copy_(update(q_network, fast_q, fast_target, optimizer, masks, batch, args.batch_size, args.gamma))

    cuts = cut_iterations(args)
    if any(0 < cut * args.num_envs <= args.learning_starts for cut in cuts):
        say("warning: a cut comes before --learning-starts, when the network has learned nothing yet", error=True)
    graphed_functions = (act, learn)  # a cut makes their CUDA graphs stale
    for iteration in range(global_step // args.num_envs, args.num_iterations + 1):  # vectorised steps done so far
        global_step = iteration * args.num_envs
        run.checkpoint_if_due(global_step)

        # the cut: every arm comes here, started, resumed or forked (`none` removes nothing); no emulator step is pending
        if iteration in cuts[run.cuts_done :]:
            if args.prune_type == "none" and args.fork_from is None:
                run.save_prune_point(global_step)  # what the arms of this seed fork from
            if args.until_cut:
                return run.pause(global_step)
            run.evaluate("before_prune", global_step, q_network, make_eval_policy)  # only once, at the first cut
            tensors = prunable(q_network, args.prune_bias, args.prune_head)
            rate = rate_after(args, run.cuts_done + 1)
            masks |= make_masks(tensors, args.prune_type, rate, args.prune_scope, run.mask_seed(), masks)
            apply_masks(q_network, optimizer, masks)
            kept_units |= choose_units(q_network, args.prune_type, rate, run.mask_seed())
            remove_units(kept_units, networks, optimizer)
            target_network.load_state_dict(q_network.state_dict())  # in `none` too, whatever tau: arms differ by the cut alone
            run.cuts_done += 1
            run.log_cut(global_step, count_tensors(prunable(q_network), masks, sizes))
            for function in graphed_functions:
                function.forget_graphs()  # on a GPU its next call captures the network as it is now
        if iteration == cuts[-1]:  # no part of the cut, so that a run stopped in this evaluation resumes here
            run.evaluate("after_prune", global_step, q_network, make_eval_policy)

        if iteration == args.num_iterations:
            break
        run.log_health_if_due(global_step, q_network, make_eval_policy)

        # act, and learn before the step is stored (CleanRL: after), so that the emulator's threads work meanwhile
        next_step = global_step + args.num_envs
        actions = act().cpu().numpy()
        games.send(actions)
        if updates := crossings(global_step, next_step, args.train_frequency, args.learning_starts):
            learn(updates)
        for _ in range(crossings(global_step, next_step, args.target_network_frequency, args.learning_starts)):
            sync_target(target_network, q_network, args.tau)
        step = games.receive()
        inbox.put(**buffer.advance(actions, step), epsilon=schedule(next_step))
        store()

        run.log.games(next_step, step.finished)
        if crossings(global_step, next_step, 1000):
            metrics = {"charts/epsilon": schedule(global_step)}
            if next_step > args.learning_starts + args.train_frequency:  # at least one update is done
                metrics |= dict(zip(("losses/td_loss", "losses/q_values"), last_losses.tolist(), strict=True))
            run.log.progress(next_step, metrics, learning=next_step > args.learning_starts)

    return run.finish(global_step, q_network, count_tensors(prunable(q_network), masks, sizes), make_eval_policy)


def main() -> None:
    with exit_codes():
        train(parse_options(Args, __doc__))


if __name__ == "__main__":
    main()
