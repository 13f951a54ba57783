"""What happens inside a network: dormant units, effective rank, norms. Each number with its equation and its source."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from prune_utils.device import true_fp32
from prune_utils.shrink import hidden_layers


def dormant_share(activations: torch.Tensor, tau: float = 0.025) -> float:
    """Share of dormant units: those whose mean |h_i| is at most tau times the mean over the units of the layer.

    `activations` (n, units, ...) are taken after the ReLU, and means are over observations and positions. Sokar et al. 2023
    (https://arxiv.org/abs/2302.12902), equation 1. In a layer without any activation every unit is dormant.
    """
    means = activations.abs().transpose(0, 1).flatten(1).mean(dim=1)  # (units,)
    return (means <= tau * means.mean()).float().mean().item()


def effective_rank(features: torch.Tensor, delta: float = 0.01) -> int:
    """The least k whose k largest singular values sum to at least 1 - delta of the sum of all; 0 for a matrix of zeros.

    `features` (n, units). Kumar et al. 2021 (https://arxiv.org/abs/2010.14498), srank.
    """
    values = torch.linalg.svdvals(features.double())
    sums = values.cumsum(0)
    return int((sums < (1 - delta) * sums[-1]).sum()) + 1 if sums[-1] > 0 else 0


@torch.no_grad()
@true_fp32()
def measure(network: nn.Module, obs: torch.Tensor) -> dict[str, float]:
    """Health of a network on observations (n, 4, 84, 84): of hidden layers, last features, weights and outputs.

    weight_norm is the L2 norm of all weights and biases, feature_norm the mean L2 norm of the last hidden features. The
    network's `output_health` adds statistics of its outputs. Raises FloatingPointError if those are not finite.
    """
    activations: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _in, out, name=name: activations.update({name: out}))
        for name, (layer, _) in hidden_layers(network).items()
    ]
    outputs = network(obs)
    for hook in hooks:
        hook.remove()
    numbers = {name: t.item() for name, t in network.output_health(outputs).items()}
    if not all(map(math.isfinite, numbers.values())):
        raise FloatingPointError(f"the outputs of the network are not finite ({numbers}): the training has diverged")
    activations = {name: F.relu(out).cpu() for name, out in activations.items()}  # again, where it was applied in place
    features = list(activations.values())[-1]
    health: dict[str, float] = {f"dormant_{name}": dormant_share(h) for name, h in activations.items()}
    health |= {"effective_rank": effective_rank(features), "feature_norm": features.norm(dim=1).mean().item()}
    health["weight_norm"] = math.sqrt(sum(p.double().square().sum().item() for p in network.parameters()))
    return health | numbers
