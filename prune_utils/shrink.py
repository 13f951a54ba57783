"""Remove whole channels and hidden units of a network, in place; count what is left of each tensor."""

import torch
import torch.nn as nn

from prune_utils.basics import Tensors


def count_tensors(tensors: Tensors, masks: Tensors, sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    """Per tensor: `total` entries before the cut; `pruned`, masked or removed; `nonzero` (an unmasked entry can be 0 too)."""
    counts = {}
    for name, t in tensors.items():
        masked = int((masks[name] == 0).sum()) if name in masks else 0
        counts[name] = {"total": sizes[name], "pruned": sizes[name] - t.numel() + masked, "nonzero": int(t.count_nonzero())}
    return counts


def hidden_layers(network: nn.Module) -> dict[str, tuple[nn.Module, list[nn.Module]]]:
    """The layers that have units, by name, each with the layers that read it. The network is a chain, then its HEADS."""
    layers = {name: m for name, m in network.named_children() if isinstance(m, (nn.Conv2d, nn.Linear))}
    chain = [name for name in layers if name not in network.HEADS]
    readers = [*([layers[name]] for name in chain[1:]), [layers[name] for name in network.HEADS]]
    return {name: (layers[name], read_by) for name, read_by in zip(chain, readers, strict=True)}


def keep_units(t: torch.Tensor, keep: torch.Tensor, dim: int) -> torch.Tensor:
    """The kept units of a tensor along `dim`. A unit can own several entries in a row: fc1 reads 49 per channel of conv3."""
    index = keep.to(t.device).repeat_interleave(t.shape[dim] // len(keep)).nonzero().squeeze(1)
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return t.index_select(dim, index).contiguous(memory_format=memory_format)


@torch.no_grad()
def remove_units(units: Tensors, networks: list[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Keep only these units of each layer, with their biases and Adam moments, and what the next layer reads of them.

    What stays keeps its bits. Parameters stay the same objects, so optimizers and hooks still know them. Networks may share
    parameters, as a low-precision copy does. CUDA graphs of the networks have to be captured anew.
    """
    done = set()
    for network in networks:
        for name, keep in units.items():
            layer, readers = hidden_layers(network)[name]
            for p, dim in [(layer.weight, 0), (layer.bias, 0), *((reader.weight, 1) for reader in readers)]:
                if (id(p), dim) in done:
                    continue
                done.add((id(p), dim))
                p.data, p.grad = keep_units(p.data, keep, dim), None
                if optimizer is not None and p in optimizer.state:
                    state = optimizer.state[p]
                    state |= {moment: keep_units(state[moment], keep, dim) for moment in ("exp_avg", "exp_avg_sq")}
            for each in (layer, *readers):
                sizes = ("out_channels", "in_channels") if isinstance(each, nn.Conv2d) else ("out_features", "in_features")
                for size, number in zip(sizes, each.weight.shape, strict=False):
                    setattr(each, size, number)
