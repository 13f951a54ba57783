"""Masks have exactly the promised zeros, and the zeros stay: in the network, in its target, through Adam's momentum."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dqn_atari_prune import QNetwork, apply_masks, make_masks, mask_gradients, prunable, sync_target
from dqn_atari_prune import update as dqn_update
from ppo_atari_prune import Agent
from ppo_atari_prune import Args as PPOArgs
from ppo_atari_prune import update as ppo_update
from prune_utils.basics import derive_seed
from prune_utils.device import PreallocatedAdam, low_precision
from prune_utils.shrink import count_tensors

NETWORKS = {"dqn": QNetwork, "ppo": Agent}
RATES = [0.0, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95]
networks = pytest.mark.parametrize("algorithm", NETWORKS)
criteria = pytest.mark.parametrize("prune_type", ["l1", "random"])
scopes = pytest.mark.parametrize("scope", ["layer", "global"])
biases = pytest.mark.parametrize("bias", [True, False], ids=["with biases", "weights only"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def build(algorithm: str, hidden_size: int = 512, channels: tuple[int, int, int] = (32, 64, 64)):
    torch.manual_seed(1)
    network = NETWORKS[algorithm](6, (*channels, hidden_size)).to(memory_format=torch.channels_last)
    return network, PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-8)


def zeros(masks: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: int((mask == 0).sum()) for name, mask in masks.items()}


def is_plus_zero(t: torch.Tensor, mask: torch.Tensor) -> bool:
    return bool((t[mask == 0].view(torch.int32) == 0).all())


def random_steps(network, optimizer, masks, steps: int) -> None:
    """Adam steps with random gradients, ten sets of them in turn."""
    generator = torch.Generator().manual_seed(0)
    parameters = list(network.parameters())
    draws = [[torch.empty_like(p).normal_(generator=generator) for p in parameters] for _ in range(10)]
    for p in parameters:
        p.grad = torch.empty_like(p)
    for step in range(steps):
        torch._foreach_copy_([p.grad for p in parameters], draws[step % 10])
        mask_gradients(network, masks)
        optimizer.step()


@networks
@criteria
@scopes
@biases
def test_every_mask_has_exactly_the_promised_zeros_and_random_ones_are_nested_over_rates(algorithm, prune_type, scope, bias):
    whole = (prune_type, scope, bias) == ("l1", "layer", True)
    network, _ = build(algorithm, 512 if whole else 64)
    tensors = prunable(network, bias)
    assert len(tensors) == (2 if bias else 1) * (5 if algorithm == "dqn" else 6)
    total, smaller = sum(t.numel() for t in tensors.values()), None
    for rate in RATES:
        masks = make_masks(tensors, prune_type, rate, scope, seed=7)
        assert all(((m == 0) | (m == 1)).all() and m.dtype == torch.float32 for m in masks.values())
        assert all(masks[name].stride() == t.stride() for name, t in tensors.items())
        if scope == "layer":
            assert zeros(masks) == {name: round(rate * t.numel()) for name, t in tensors.items()}
        else:
            assert sum(zeros(masks).values()) == round(rate * total)
            assert zeros(masks) == zeros(make_masks(tensors, "l1", rate, "global", seed=7))
        if prune_type == "random" and smaller is not None:  # what a lower rate removes, a higher one removes too
            assert all(((smaller[name] == 0) <= (masks[name] == 0)).all() for name in masks)
        if prune_type == "l1":  # the largest that goes is no larger than the smallest that stays
            parts = [tensors] if scope == "global" else [{name: t} for name, t in tensors.items()]
            for part in parts:
                gone = torch.cat([t[masks[name] == 0].abs() for name, t in part.items()])
                kept = torch.cat([t[masks[name] == 1].abs() for name, t in part.items()])
                assert not len(gone) or not len(kept) or gone.max() <= kept.min()
        smaller = masks


def test_the_lines_of_the_documentation_prune_a_network_in_a_training_loop_of_its_own():
    page = (Path(__file__).parents[1] / "docs" / "pruning.md").read_text()
    imports, cut, update = re.search(r"## In your own training loop.*?```python\n(.*?)```", page, re.S)[1].split("\n\n")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    x = torch.randn(5, 3, 8, 8)
    network(x).square().sum().backward()
    optimizer.step()  # momentum that would move a pruned entry
    names = {"torch": torch, "network": network, "optimizer": optimizer}
    exec(imports + "\n" + cut, names)
    for _ in range(3):
        exec(update, names | {"loss": network(x).square().sum()})
        assert all(int((p == 0).sum()) == round(0.5 * p.numel()) for p in network.parameters())


@criteria
@scopes
def test_ties_do_not_change_the_count(prune_type, scope):
    tensors = {"equal": torch.full((7, 11), 0.5), "zero": torch.zeros(13), "signed": torch.tensor([1.0, -1.0] * 8)}
    for rate in RATES:
        counts = zeros(make_masks(tensors, prune_type, rate, scope, seed=0))
        if scope == "layer":
            assert counts == {"equal": round(rate * 77), "zero": round(rate * 13), "signed": round(rate * 16)}
        else:
            assert sum(counts.values()) == round(rate * 106)


def test_the_random_criterion_repeats_for_a_seed_differs_for_another_and_leaves_the_global_stream_alone():
    tensors = prunable(build("ppo")[0])
    before = torch.get_rng_state()
    first, again, other = (make_masks(tensors, "random", 0.3, "layer", derive_seed(seed, "mask")) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in tensors)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])
    torch.manual_seed(99)
    assert torch.equal(make_masks(tensors, "random", 0.3, "layer", derive_seed(1, "mask"))["fc1.weight"], first["fc1.weight"])


def test_none_masks_nothing_and_multiplies_nothing(monkeypatch):
    network, _ = build("dqn", 16)
    masks = make_masks(prunable(network), "none", 0.5, "layer", 0)
    assert masks == {}
    monkeypatch.setattr(torch, "_foreach_mul_", None)
    mask_gradients(network, masks)


@networks
@pytest.mark.parametrize(
    ("prune_type", "scope", "rate"),
    [("random", "layer", 0.5), ("l1", "global", 0.5), ("random", "global", 0.5), *(("l1", "layer", rate) for rate in RATES)],
)
@biases
def test_pruned_entries_are_plus_zero_through_1000_adam_steps_that_carry_momentum(algorithm, prune_type, scope, bias, rate):
    network, optimizer = build(algorithm, hidden_size=2, channels=(8, 16, 16))
    random_steps(network, optimizer, {}, 20)
    masks = make_masks(prunable(network, bias), prune_type, rate, scope, seed=3)
    apply_masks(network, optimizer, masks)
    kept = {name: network.get_parameter(name).detach().clone() for name in masks}
    assert all(is_plus_zero(kept[name], mask) for name, mask in masks.items())
    random_steps(network, optimizer, masks, 1000)
    for name, mask in masks.items():
        p = network.get_parameter(name)
        assert is_plus_zero(p.detach(), mask)
        assert (p.detach()[mask == 1] != kept[name][mask == 1]).all()
        assert all((optimizer.state[p][moment][mask == 0] == 0).all() for moment in ("exp_avg", "exp_avg_sq"))
    counts = count_tensors(prunable(network), masks, {name: p.numel() for name, p in network.named_parameters()})
    assert {name: counts[name]["pruned"] for name in masks} == zeros(masks)


def test_momentum_alone_would_move_pruned_entries_off_zero():
    network, optimizer = build("dqn", hidden_size=2)
    random_steps(network, optimizer, {}, 20)
    masks = make_masks(prunable(network), "l1", 0.5, "layer", 0)
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    random_steps(network, optimizer, masks, 3)  # the trap: gradients masked, but moments left as they were
    weight, mask = network.conv1.weight.detach(), masks["conv1.weight"]
    assert (weight[mask == 0] != 0).all()


def test_a_mask_that_empties_a_tensor_is_allowed_by_the_global_scope():
    agent, _ = build("ppo")  # its actor is born a hundred times smaller than its other layers
    counts = zeros(make_masks(prunable(agent, bias=False), "l1", 0.05, "global", 0))
    assert counts["actor.weight"] == agent.actor.weight.numel() and counts["fc1.weight"] < agent.fc1.weight.numel()


@dtypes
def test_the_target_network_is_as_sparse_as_the_online_one_at_the_cut_and_after_every_sync_and_stays_so_in_whole_updates(dtype):
    network, optimizer = build("dqn")
    target = build("dqn")[0].requires_grad_(False)
    fast_q, fast_target = low_precision(network, dtype, optimizer), low_precision(target, dtype)
    g = torch.Generator().manual_seed(0)

    def batch():
        obs, next_obs = (torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, generator=g) for _ in range(2))
        actions, rewards = torch.randint(6, (8,), generator=g), torch.randn(8, generator=g)
        return obs, actions, rewards, next_obs, torch.rand(8, generator=g) < 0.2

    for _ in range(5):
        dqn_update(network, fast_q, fast_target, optimizer, {}, batch(), 8, 0.99)
    masks = make_masks(prunable(network), "l1", 0.8, "layer", 0)
    apply_masks(network, optimizer, masks)
    target.load_state_dict(network.state_dict())
    nets = {network, target, fast_q, fast_target}
    before = network.fc1.weight.detach().clone()
    for step in range(20):
        assert all(is_plus_zero(net.get_parameter(n).detach().float(), m) for net in nets for n, m in masks.items())
        dqn_update(network, fast_q, fast_target, optimizer, masks, batch(), 8, 0.99)
        if step % 5 == 0:
            sync_target(target, network, tau=1.0 if step % 10 else 0.5)
    moved = (network.fc1.weight != before)[masks["fc1.weight"] == 1]
    assert moved.float().mean() > 0.5 and torch.equal(target.conv1.weight != 0, network.conv1.weight != 0)


def ppo_minibatch(agent, g, n: int = 16):
    obs = torch.randint(256, (n, 4, 84, 84), dtype=torch.uint8, generator=g)
    actions = torch.randint(6, (n,), generator=g)
    advantages, returns = torch.randn(n, generator=g), torch.randn(n, generator=g) * 10
    with torch.no_grad():
        logits, values = agent(obs)
    return obs, actions, logits.log_softmax(1).gather(1, actions[:, None]).squeeze(1), advantages, returns, values


@dtypes
def test_pruned_entries_stay_plus_zero_in_whole_ppo_updates_while_the_others_move(dtype):
    agent, optimizer = build("ppo")
    fast_agent = low_precision(agent, dtype, optimizer)
    g, args = torch.Generator().manual_seed(0), PPOArgs()
    for _ in range(3):
        ppo_update(agent, fast_agent, optimizer, {}, ppo_minibatch(agent, g), args)
    masks = make_masks(prunable(agent), "random", 0.5, "layer", 0)
    apply_masks(agent, optimizer, masks)
    before = agent.fc1.weight.detach().clone()
    for _ in range(15):
        ppo_update(agent, fast_agent, optimizer, masks, ppo_minibatch(agent, g), args)
    for net in (agent, fast_agent):
        assert all(is_plus_zero(net.get_parameter(name).detach().float(), mask) for name, mask in masks.items())
    assert (agent.fc1.weight != before)[masks["fc1.weight"] == 1].float().mean() > 0.5


@dtypes
def test_gradients_are_masked_before_the_norm_is_clipped(dtype):
    agent, optimizer = build("ppo", hidden_size=32)
    minibatch = ppo_minibatch(agent, torch.Generator().manual_seed(0))
    masks = make_masks(prunable(agent), "random", 0.8, "layer", 0)
    apply_masks(agent, optimizer, masks)
    fast_agent = low_precision(agent, dtype, optimizer)
    ppo_update(agent, fast_agent, optimizer, masks, minibatch, PPOArgs(vf_coef=100.0))  # a gradient beyond the limit
    norm = torch.cat([p.grad.flatten() for p in agent.parameters()]).norm()
    # clipping first and masking then would leave a norm below the limit: 80 % of the entries would be gone from it
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
