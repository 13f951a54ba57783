"""Train PPO on an Atari game, prune its network once in the middle of training, continue training, and log costs and savings.

Algorithm: Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), with the losses and hyperparameters of CleanRL's
ppo_atari.py, except total_timesteps.

The cut: when global_step reaches the share `--prune-at` of the training, the network is pruned once, by magnitude (`l1`) or at
random. Pruned weights and biases become zero and stay zero. With `-structured`, whole channels and hidden units are removed,
and training continues with a smaller network. `--prune-cuts N` prunes gradually instead, in N cuts. An arm is one pruning
setting; all arms of a seed are the same run until the cut.

    python ppo_atari_prune.py --env-id SpaceInvadersNoFrameskip-v4 --prune-type l1 --prune-rate 0.5 --seed 1

It writes runs/<run_name>/: config.json, source/, curves.csv, TensorBoard events, model.pt, eval.csv and, last, summary.json.
This file holds the whole algorithm and the pruning. What would be the same for any algorithm is in prune_utils/.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import prune

from prune_utils.basics import Tensors, check, exit_codes, parse_options, seeded
from prune_utils.device import FoldedConv2d, Inbox, PreallocatedAdam, graphed, low_precision, memory_bytes, scaled
from prune_utils.evaluation import Policy
from prune_utils.games import AtariGames
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
    learning_rate: float = 2.5e-4
    """step size of Adam, above 0; the initial one if annealed"""
    num_envs: int = 8
    """games played at once, at least 1"""
    num_steps: int = 128
    """agent steps of each game in a rollout, at least 1"""
    anneal_lr: bool = True
    """anneal the learning rate linearly to 0"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    gae_lambda: float = 0.95
    """decay of generalised advantage estimation, in [0, 1]"""
    num_minibatches: int = 4
    """minibatches that a rollout is split into, a divisor of its agent steps"""
    update_epochs: int = 4
    """passes over a rollout, at least 1"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.1
    """clipping range of the probability ratio (epsilon in the paper), above 0"""
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
        check_common(self)
        check(0 <= self.gae_lambda <= 1, "gae_lambda", "lie in [0, 1]", self.gae_lambda)
        check(self.num_steps >= 1, "num_steps", "be at least 1", self.num_steps)
        check(self.num_minibatches >= 1, "num_minibatches", "be at least 1", self.num_minibatches)
        check(self.update_epochs >= 1, "update_epochs", "be at least 1", self.update_epochs)
        check(0 < self.clip_coef < math.inf, "clip_coef", "be finite and above 0", self.clip_coef)
        check(0 <= self.ent_coef < math.inf, "ent_coef", "be finite, at least 0", self.ent_coef)
        check(0 <= self.vf_coef < math.inf, "vf_coef", "be finite, at least 0", self.vf_coef)
        check(0 < self.max_grad_norm < math.inf, "max_grad_norm", "be finite and above 0", self.max_grad_norm)
        check(self.target_kl is None or self.target_kl > 0, "target_kl", "be above 0", self.target_kl)
        rollout = self.steps_per_iteration
        rule = f"divide a rollout of num_envs * num_steps = {rollout} agent steps"
        check(rollout % self.num_minibatches == 0, "num_minibatches", rule, self.num_minibatches)
        rule = "leave at least two agent steps per minibatch, with --norm-adv"
        check(self.num_minibatches < rollout or not self.norm_adv, "num_minibatches", rule, self.num_minibatches)
        most = memory_bytes(self.cuda) // (4 * 84 * 84 * 4)  # stacks of 4 frames in fp32, the widest precision
        check(rollout <= most, "num_steps", f"make a rollout ({rollout}) that fits into memory here ({most})", self.num_steps)
        rule = f"hold one rollout ({rollout} agent steps)"
        check(self.total_timesteps >= rollout, "total_timesteps", rule, self.total_timesteps)

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
        return self.num_envs * self.num_steps


# --------------------------------------------------------------------------------------------------------------- network
def layer_init(layer: nn.Module, std: float = math.sqrt(2)) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


class Agent(nn.Module):
    """Policy and value: (batch, 4, 84, 84) frames, uint8 or scaled, to fp32 logits (batch, num_actions), values (batch,)."""

    HEADS = ("actor", "critic")  # output layers: they lose no units, and low_precision keeps them in fp32

    def __init__(self, num_actions: int, widths: tuple[int, ...] = (32, 64, 64, 512)):
        super().__init__()
        c1, c2, c3, hidden = widths
        # FoldedConv2d is nn.Conv2d with the same parameters and function, and faster gradients on a CPU
        self.conv1 = layer_init(FoldedConv2d(4, c1, 8, stride=4))
        self.conv2 = layer_init(FoldedConv2d(c1, c2, 4, stride=2))
        self.conv3 = layer_init(nn.Conv2d(c2, c3, 3, stride=1))
        self.fc1 = layer_init(nn.Linear(7 * 7 * c3, hidden))
        self.actor = layer_init(nn.Linear(hidden, num_actions), std=0.01)
        self.critic = layer_init(nn.Linear(hidden, 1), std=1.0)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.conv1(scaled(obs, self.conv1.weight.dtype)), inplace=True)
        x = F.relu(self.conv2(x), inplace=True)
        x = F.relu(self.conv3(x).flatten(1), inplace=True)
        x = F.relu(self.fc1(x), inplace=True)
        x = x.float()
        return self.actor(x), self.critic(x).squeeze(1)

    def output_health(self, outputs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is logged as health of the outputs: the mean entropy of the policy, in nats."""
        return {"entropy": mean_entropy(outputs[0])}


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
def sample_actions(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw actions (num_envs,) from the softmax p of logits (num_envs, num_actions), as the argmax of p / E with E ~ Exp(1)."""
    exponentials = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(dim=1) / exponentials).argmax(dim=1)


def make_policy(network: Agent, seed: int) -> Policy:
    """Sampled actions for evaluation games, with a generator of its own."""
    device = network.actor.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    return lambda obs: sample_actions(network(obs.to(device))[0], generator)


def log_prob(logits: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Log-probability (batch,) of actions (batch,) under logits (batch, num_actions)."""
    return logits.log_softmax(dim=1).gather(1, actions[:, None]).squeeze(1)


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the policy in nats, mean over the batch."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()


def compute_gae(rewards, values, terminations, next_value, gamma: float, gae_lambda: float) -> torch.Tensor:
    """Generalised advantage estimation (https://arxiv.org/abs/1506.02438), (num_steps, num_envs).

    `terminations[t]`: step t ended a life or a game, or hit the time limit; nothing after it counts. `next_value` (num_envs,)
    is the value of the observation after the last step. `values` + advantages are the returns that the critic is trained on.
    """
    nonterminal = 1.0 - terminations.float()
    deltas = rewards + gamma * torch.cat([values[1:], next_value[None]]) * nonterminal - values
    decays = gamma * gae_lambda * nonterminal
    advantages = deltas.clone()
    for t in reversed(range(len(rewards) - 1)):
        advantages[t].addcmul_(decays[t], advantages[t + 1])
    return advantages


def policy_loss(advantages: torch.Tensor, ratio: torch.Tensor, clip_coef: float) -> torch.Tensor:
    """The clipped surrogate objective, as a loss."""
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef)).mean()


def value_loss(new_values, values, returns, clip_coef: float, clip_vloss: bool) -> torch.Tensor:
    """Half the mean squared error. With clip_vloss, each error is the larger of those of the new and the clipped value."""
    squared = (new_values - returns) ** 2
    if clip_vloss:
        clipped = values + (new_values - values).clamp(-clip_coef, clip_coef)
        squared = torch.max(squared, (clipped - returns) ** 2)
    return 0.5 * squared.mean()


def update(agent, fast_agent, optimizer, masks, minibatch, args) -> dict[str, torch.Tensor]:
    """One gradient update from a minibatch: obs (n, 4, 84, 84) and actions, logprobs, advantages, returns, values (n,).

    `fast_agent` runs forward; gradients arrive at `agent`, which Adam updates (`low_precision`).
    """
    obs, actions, logprobs, advantages, returns, values = minibatch
    logits, new_values = fast_agent(obs)
    logratio = log_prob(logits, actions) - logprobs
    ratio = logratio.exp()
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    pg_loss = policy_loss(advantages, ratio, args.clip_coef)
    v_loss = value_loss(new_values, values, returns, args.clip_coef, args.clip_vloss)
    entropy = mean_entropy(logits)
    optimizer.zero_grad()
    (pg_loss - args.ent_coef * entropy + args.vf_coef * v_loss).backward()
    mask_gradients(agent, masks)
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    optimizer.step()
    with torch.no_grad():
        approx_kl = ((ratio - 1) - logratio).mean()  # http://joschu.net/blog/kl-approx.html
        clipfrac = ((ratio - 1).abs() > args.clip_coef).float().mean()
    losses = {"policy_loss": pg_loss, "value_loss": v_loss, "entropy": entropy, "approx_kl": approx_kl, "clipfrac": clipfrac}
    return {name: value.detach() for name, value in losses.items()}


# -------------------------------------------------------------------------------------------------------------- training
def train(args: Args) -> Path:
    """Train, prune, continue training, evaluate and save. Returns the run folder."""
    run = Run(args, "ppo", __file__)
    if run.finished:
        return run.folder
    device = run.device

    games = AtariGames(args.env_id, args.num_envs, run.seed("games"), run.num_threads)
    with seeded(run.seed("network")):
        agent = Agent(games.num_actions, args.widths)
    agent = agent.to(device, memory_format=torch.channels_last)
    optimizer = PreallocatedAdam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    # what runs forward and backward: in fp32 the agent itself, else a copy renewed by optimizer.step and load_state_dict
    fast_agent = low_precision(agent, run.dtype, optimizer)
    networks = [agent, fast_agent]
    act_generator, batch_generator = run.generator("actions"), run.generator("minibatches")
    masks: Tensors = {}  # of an unstructured cut; empty until then
    sizes = {name: t.numel() for name, t in prunable(agent).items()}  # before the cut
    kept_units = run.saved_part("kept_units")  # of a structured cut; empty until then
    remove_units(kept_units, networks, optimizer)  # the shapes of a checkpoint, before its weights are restored
    # the algorithm's part of a checkpoint; `resume` restores it from a checkpoint or prune point
    parts = {"agent": agent, "optimizer": optimizer, "masks": masks, "kept_units": kept_units, "games": games}
    parts |= {"act_generator": act_generator, "batch_generator": batch_generator}
    global_step = run.resume(parts)

    rollout = (args.num_steps, args.num_envs)
    # put() sends these to the device; rewards and terminations are filled in place during a rollout and read at its end
    arrays = {"t": np.zeros(1, np.int64), "rewards": np.zeros(rollout, np.float32), "terminations": np.zeros(rollout, bool)}
    inbox = Inbox(device, obs=games.obs, **arrays)
    rewards, terminations = inbox.arrays["rewards"], inbox.arrays["terminations"]
    # what stays on the device; frames are channels last and scaled, as the network reads them
    obs = torch.zeros(*rollout, 84, 84, 4, dtype=run.dtype, device=device)
    actions = torch.zeros(rollout, dtype=torch.int64, device=device)
    logprobs, values, advantages, returns = (torch.zeros(rollout, device=device) for _ in range(4))
    b_rollout = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, returns, values)]
    minibatch = [torch.zeros_like(x[: args.steps_per_iteration // args.num_minibatches]) for x in b_rollout]
    mb_inds = torch.zeros(len(minibatch[0]), dtype=torch.int64, device=device)

    # on a GPU each call replays a CUDA graph, whose capture restores `changes`; on a CPU they are plain calls
    @graphed(device, changes=(act_generator,))
    @torch.no_grad()
    def act() -> torch.Tensor:
        frames = scaled(inbox["obs"], run.dtype)
        logits, value = fast_agent(frames)
        action = sample_actions(logits, act_generator)
        t = inbox["t"]  # a tensor: a CUDA graph would bake in a Python int
        obs.index_copy_(0, t, frames.movedim(1, -1)[None])
        actions.index_copy_(0, t, action[None])
        logprobs.index_copy_(0, t, log_prob(logits, action)[None])
        values.index_copy_(0, t, value[None])
        return action

    @graphed(device)
    @torch.no_grad()
    def compute_advantages() -> None:
        next_value = fast_agent(inbox["obs"])[1]
        gae = compute_gae(inbox["rewards"], values, inbox["terminations"], next_value, args.gamma, args.gae_lambda)
        advantages.copy_(gae)
        torch.add(gae, values, out=returns)

    @graphed(device, changes=(agent, fast_agent, optimizer))
    def learn() -> dict[str, torch.Tensor]:
        for x, mb in zip(b_rollout, minibatch, strict=True):
            torch.index_select(x, 0, mb_inds, out=mb)
        return update(agent, fast_agent, optimizer, masks, (minibatch[0].movedim(-1, 1), *minibatch[1:]), args)

    cuts = cut_iterations(args)
    graphed_functions = (act, compute_advantages, learn)  # a cut makes their CUDA graphs stale
    for iteration in range(global_step // args.steps_per_iteration, args.num_iterations + 1):  # finished rollouts
        global_step = iteration * args.steps_per_iteration
        run.checkpoint_if_due(global_step)

        # the cut: every arm comes here, started, resumed or forked (`none` removes nothing); no emulator step is pending
        if iteration in cuts[run.cuts_done :]:
            if args.prune_type == "none" and args.fork_from is None:
                run.save_prune_point(global_step)  # what the arms of this seed fork from
            if args.until_cut:
                return run.pause(global_step)
            run.evaluate("before_prune", global_step, agent, make_policy)  # only once, at the first cut
            tensors = prunable(agent, args.prune_bias, args.prune_head)
            rate = rate_after(args, run.cuts_done + 1)
            masks |= make_masks(tensors, args.prune_type, rate, args.prune_scope, run.mask_seed(), masks)
            apply_masks(agent, optimizer, masks)
            kept_units |= choose_units(agent, args.prune_type, rate, run.mask_seed())
            remove_units(kept_units, networks, optimizer)
            run.cuts_done += 1
            run.log_cut(global_step, count_tensors(prunable(agent), masks, sizes))
            for function in graphed_functions:
                function.forget_graphs()  # on a GPU its next call captures the network as it is now
        if iteration == cuts[-1]:  # no part of the cut, so that a run stopped in this evaluation resumes here
            run.evaluate("after_prune", global_step, agent, make_policy)

        if iteration == args.num_iterations:
            break
        run.log_health_if_due(global_step, agent, make_policy)

        fraction = 1.0 - iteration / args.num_iterations if args.anneal_lr else 1.0
        learning_rate = fraction * args.learning_rate
        optimizer.param_groups[0]["lr"].fill_(learning_rate)

        # a rollout: num_steps of all games
        for t in range(args.num_steps):
            inbox.put(t=t, obs=games.obs)
            games.send(act().cpu().numpy())
            step = games.receive()
            rewards[t], terminations[t] = np.sign(step.rewards), step.terminations
            if step.truncations.any():
                # the time limit, not the game's end: bootstrap with V(final_obs), then treat as terminal
                with torch.no_grad():
                    final_values = fast_agent(torch.from_numpy(step.final_obs).to(device))[1].cpu().numpy()
                truncated = step.truncations & ~step.terminations
                rewards[t] += args.gamma * final_values * truncated
                terminations[t] |= truncated
            global_step += args.num_envs
            run.log.games(global_step, step.finished)

        # advantages, then update_epochs passes over the rollout
        inbox.put(obs=games.obs)
        compute_advantages()
        clipfracs = []
        for _epoch in range(args.update_epochs):
            order = torch.randperm(args.steps_per_iteration, generator=batch_generator, device=device)
            for inds in order.chunk(args.num_minibatches):
                mb_inds.copy_(inds)
                losses = learn()
                clipfracs.append(losses["clipfrac"].clone())  # the next call overwrites it
            if args.target_kl is not None and losses["approx_kl"] > args.target_kl:
                break

        explained = 1 - (returns - values).var() / returns.var()
        losses = losses | {"clipfrac": torch.stack(clipfracs).mean(), "explained_variance": explained}
        numbers = torch.stack(list(losses.values())).tolist()  # one transfer from the device
        metrics = {f"losses/{name}": number for name, number in zip(losses, numbers, strict=True)}
        run.log.progress(global_step, metrics | {"charts/learning_rate": learning_rate}, learning=True)

    return run.finish(global_step, agent, count_tensors(prunable(agent), masks, sizes), make_policy)


def main() -> None:
    with exit_codes():
        train(parse_options(Args, __doc__))


if __name__ == "__main__":
    main()
