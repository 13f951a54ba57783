"""What does bf16 change in an update? Its gradients, and the policy that acts, beside those of fp32 and of rounding alone.

    python -m checks.rounding

A trained PPO agent plays a rollout. Its weights do not change, so that the gradients of all minibatches are of one network.
`rounded` computes in fp32 and rounds weights, activations and their gradients to bf16, as bf16 does if its sums are exact.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from evals.common import load
from ppo_atari_prune import Agent, Args, compute_gae, log_prob, sample_actions, update
from prune_utils.device import PreallocatedAdam, low_precision, scaled
from prune_utils.games import AtariGames


@dataclass
class Options:
    model: Path = Path("results/agents/ppo_l1-0.5_s1")
    """a PPO network or its run folder"""
    num_steps: int = 256
    """steps of 8 games"""
    num_threads: int = 1
    """CPU threads"""


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.bfloat16().float()


class RoundedAgent(Agent):
    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = Rounded.apply
        x = rounded(scaled(obs, torch.float32))
        for layer in (self.conv1, self.conv2, self.conv3):
            x = F.relu(rounded(F.conv2d(x, rounded(layer.weight), rounded(layer.bias), layer.stride)))
        x = F.relu(rounded(F.linear(x.flatten(1), rounded(self.fc1.weight), rounded(self.fc1.bias))))
        return self.actor(x), self.critic(x).squeeze(1)


def play(networks: dict, options: Options, env_id: str, args: Args) -> dict[str, list[torch.Tensor]]:
    """A rollout of the fp32 network, flat, as `update` takes it, with what each network computes when it acts on 8 stacks."""
    games, generator = AtariGames(env_id, 8, 1, options.num_threads), torch.Generator().manual_seed(0)
    rows, acting = [], {name: [] for name in networks}
    for _ in range(options.num_steps):
        frames = torch.from_numpy(games.obs.copy())
        outputs = {name: network(frames) for name, network in networks.items()}
        actions = sample_actions(outputs["fp32"][0], generator)
        for name, (logits, values) in outputs.items():
            acting[name].append((log_prob(logits, actions), values))
        games.send(actions.numpy())
        step = games.receive()
        rewards = torch.from_numpy(np.sign(step.rewards)).float()
        rows.append((frames, actions, rewards, torch.from_numpy(step.terminations.copy())))
    obs, actions, rewards, terminations = (torch.stack(column) for column in zip(*rows, strict=True))
    batches = {}
    for name, network in networks.items():
        logprobs, values = (torch.stack(column) for column in zip(*acting[name], strict=True))
        next_value = network(torch.from_numpy(games.obs))[1]
        advantages = compute_gae(rewards, values, terminations, next_value, args.gamma, args.gae_lambda)
        batches[name] = [x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, advantages + values, values)]
    return batches


def main(options: Options) -> None:
    torch.set_num_threads(options.num_threads)
    agent, env_id = load(options.model, Agent)
    agents = {name: copy.deepcopy(agent).to(memory_format=torch.channels_last) for name in ("fp32", "bf16", "rounded")}
    agents["rounded"].__class__ = RoundedAgent
    networks = agents | {"bf16": low_precision(agents["bf16"], torch.bfloat16)}
    args = Args(max_grad_norm=1e9)  # clipping would scale all layers by the same factor
    optimizers = {name: PreallocatedAdam(of_name.parameters(), lr=0.0, eps=1e-5) for name, of_name in agents.items()}
    with torch.no_grad():
        batches = play(networks, options, env_id, args)

    gradients, learning = {name: [] for name in agents}, {name: [] for name in agents}
    order = torch.randperm(len(batches["fp32"][0]), generator=torch.Generator().manual_seed(0))
    for inds in order.split(256):
        for name, network in networks.items():
            obs, actions, *rest = (x[inds] for x in batches[name])
            obs = scaled(obs, torch.bfloat16 if name == "bf16" else torch.float32)
            update(agents[name], network, optimizers[name], {}, (obs, actions, *rest), args)
            gradients[name].append({key: p.grad.clone() for key, p in agents[name].named_parameters()})
            with torch.no_grad():
                logits, values = network(obs)
            learning[name].append(torch.stack([log_prob(logits, actions), values]))

    print("Error of the gradients, relative to those of fp32: of minibatches of 256 (rms), and of their mean")
    print("| tensor | bf16 | rounded | mean, bf16 | mean, rounded |\n|---|---|---|---|---|")
    for key, _ in agent.named_parameters():
        exact, *others = (torch.stack([g[key].flatten() for g in gradients[name]]) for name in ("fp32", "bf16", "rounded"))
        errors = [(other - exact).norm() / exact.norm() for other in others]
        errors += [(other - exact).mean(0).norm() / exact.mean(0).norm() for other in others]
        print(f"| {key} | " + " | ".join(f"{error:.4f}" for error in errors) + " |")
    print("\nDifference of outputs, mean and standard deviation")
    print("| | log-probability | value |\n|---|---|---|")
    for name in ("bf16", "rounded"):
        acting, exact = (torch.stack([batches[key][i] for i in (2, 5)]) for key in (name, "fp32"))
        rows = {"acting, from fp32": acting - exact}
        rows["acting on 8, from learning on 256"] = acting[:, order] - torch.cat(learning[name], dim=1)
        for label, differences in rows.items():
            print(f"| {name} {label} | " + " | ".join(f"{x.mean():.5f}, {x.std():.5f}" for x in differences) + " |")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m checks.rounding", description=__doc__))
