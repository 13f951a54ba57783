"""Structured pruning: which units go, and that the smaller network is the masked one, in its outputs and in its training."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

import dqn_atari_prune as dqn
import ppo_atari_prune as ppo
from analysis.runs import read_results, read_run
from evals import common
from prune_utils.basics import derive_seed
from prune_utils.device import PreallocatedAdam, low_precision
from prune_utils.evaluation import observe
from prune_utils.run import Run
from prune_utils.shrink import hidden_layers, remove_units
from tests.conftest import SCRIPTS, SHORT, rows, summary, weights
from tests.test_resume import same_bits

NETWORKS = {"dqn": dqn.QNetwork, "ppo": ppo.Agent}
WIDTHS = (8, 16, 16, 32)
both = pytest.mark.parametrize("algorithm", NETWORKS)
criteria = pytest.mark.parametrize("prune_type", ["l1-structured", "random-structured"])


@cache
def frames() -> torch.Tensor:
    """(1000, 4, 84, 84): a random agent's."""
    rng = np.random.default_rng(1)
    return observe(lambda obs: torch.from_numpy(rng.integers(6, size=len(obs))), "SpaceInvadersNoFrameskip-v4", 500, seed=1)


def build(algorithm: str):
    """A network whose biases count, and an optimizer with moments."""
    torch.manual_seed(1)
    network = NETWORKS[algorithm](6, WIDTHS).to(memory_format=torch.channels_last)
    for name, p in network.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(std=0.1)
    optimizer = PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-5)
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return network, optimizer


def masks_of(network, kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Masks that zero what remove_units takes away."""
    masks = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    for name, (layer, readers) in hidden_layers(network).items():
        masks[f"{name}.weight"][~kept[name]] = 0
        masks[f"{name}.bias"][~kept[name]] = 0
        for reader, module in network.named_children():
            if module in readers:
                masks[f"{reader}.weight"].unflatten(1, (len(layer.weight), -1))[:, ~kept[name]] = 0
    return masks


def outputs(network, obs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = network(obs)
    return torch.cat([out[0], out[1][:, None]], 1) if isinstance(out, tuple) else out


def learn(algorithm: str, network, optimizer, masks, updates: int) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(updates):
        obs, n = frames()[torch.randint(1000, (32,), generator=generator)], 32
        actions = torch.randint(6, (n,), generator=generator)
        one, two, three, four = torch.randn(4, n, generator=generator)
        if algorithm == "dqn":
            batch = (obs, actions, one, obs.flip(0), two > 0)
            dqn.update(network, network, copy.deepcopy(network), optimizer, masks, batch, n, 0.99)
        else:
            ppo.update(network, network, optimizer, masks, (obs, actions, one - 2, two, three, four), ppo.Args())


@both
def test_the_promised_number_of_units_goes_from_every_hidden_layer_and_never_the_last(algorithm):
    network, _ = build(algorithm)
    for rate in (0.0, 0.1, 0.5, 0.95, 0.999):
        for prune_type in ("l1-structured", "random-structured"):
            kept = SCRIPTS[algorithm].choose_units(network, prune_type, rate, seed=3)
            assert list(kept) == ["conv1", "conv2", "conv3", "fc1"]
            assert [int(keep.sum()) for keep in kept.values()] == [max(1, n - round(rate * n)) for n in WIDTHS]
    weight = network.conv2.weight.detach()
    kept = SCRIPTS[algorithm].choose_units(network, "l1-structured", 0.5, seed=3)["conv2"]
    assert weight[kept].abs().sum(dim=(1, 2, 3)).min() > weight[~kept].abs().sum(dim=(1, 2, 3)).max()
    draws = [SCRIPTS[algorithm].choose_units(network, "random-structured", 0.5, seed)["fc1"] for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    full = NETWORKS[algorithm](6)
    for seed, rate in ((8236, 0.5), (162764, 0.999)):  # two of the 512 draws of fc1 are the same float32, at the edge
        kept = SCRIPTS[algorithm].choose_units(full, "random-structured", rate, derive_seed(seed, "mask"))
        assert int(kept["fc1"].sum()) == max(1, 512 - round(rate * 512))
    assert SCRIPTS[algorithm].choose_units(network, "l1", 0.5, 3) == {}
    assert SCRIPTS[algorithm].make_masks(dict(network.named_parameters()), "l1-structured", 0.5, "layer", 3) == {}


@both
@criteria
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.95])
def test_the_smaller_network_computes_and_learns_what_the_masked_one_does(algorithm, prune_type, rate):
    network, optimizer = build(algorithm)
    kept = SCRIPTS[algorithm].choose_units(network, prune_type, rate, seed=3)
    masks = masks_of(network, kept)
    small = copy.deepcopy(network)
    small_optimizer = PreallocatedAdam(small.parameters(), lr=1e-3, eps=1e-5)
    small_optimizer.load_state_dict(optimizer.state_dict())
    addresses = [id(p) for p in small.parameters()]
    SCRIPTS[algorithm].apply_masks(network, optimizer, masks)
    remove_units(kept, [small], small_optimizer)

    def survivors(t: torch.Tensor, name: str) -> torch.Tensor:
        return t[masks[name] == 1]

    for name, p in small.named_parameters():
        whole = network.get_parameter(name)
        assert torch.equal(p.detach().flatten(), survivors(whole.detach(), name))
        for moment in ("exp_avg", "exp_avg_sq"):
            saved = small_optimizer.state[p][moment]
            assert saved.shape == p.shape and torch.equal(saved.flatten(), survivors(optimizer.state[whole][moment], name))
    assert addresses == [id(p) for p in small.parameters()] and small.fc1.in_features == small.fc1.weight.shape[1]
    torch.testing.assert_close(outputs(small, frames()), outputs(network, frames()), atol=1e-5, rtol=0)
    for updates in (1, 9):
        learn(algorithm, network, optimizer, masks, updates)
        learn(algorithm, small, small_optimizer, {}, updates)
        for name, p in small.named_parameters():
            masked = survivors(network.get_parameter(name).detach(), name)
            torch.testing.assert_close(p.detach().flatten(), masked, atol=2e-4, rtol=1e-3)


@both
def test_low_precision_copies_and_their_gradients_shrink_with_the_network(algorithm):
    network, optimizer = build(algorithm)
    low = low_precision(network, torch.bfloat16, optimizer)
    outputs_of = (lambda net: net(frames()[:8])) if algorithm == "dqn" else (lambda net: net(frames()[:8])[0])
    outputs_of(low).sum().backward()  # gradients of the old shapes
    remove_units(SCRIPTS[algorithm].choose_units(network, "l1-structured", 0.5, 3), [network, low], optimizer)
    optimizer.zero_grad()
    outputs_of(low).sum().backward()
    reached = [p for name, p in network.named_parameters() if not name.startswith("critic")]  # outputs_of has no value
    assert all(p.grad.shape == p.shape and p.grad.dtype == torch.float32 and p.grad.any() for p in reached)
    before = network.conv2.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(network.conv2.weight, before)
    assert torch.equal(low.conv2.weight, network.conv2.weight.bfloat16()) and low.fc1.weight.shape == (16, 8 * 49)


@both
def test_a_structured_run_forks_resumes_after_its_cut_and_is_evaluated_with_its_own_widths(
    algorithm, small_run, tmp_path, monkeypatch
):
    options = {"prune_type": "l1-structured", "prune_rate": 0.5, "precision": "bf16"}
    scratch = small_run(algorithm, "short", **(SHORT[algorithm] | options))
    dense = small_run(algorithm, "short", **(SHORT[algorithm] | {"prune_type": "none", "precision": "bf16"}))
    fork = small_run(algorithm, "fork", **(SHORT[algorithm] | options), fork_from=str(dense))
    assert same_bits(fork, scratch)

    def stops(run: Run, global_step: int) -> None:
        if run.cuts_done:
            run.save(global_step)
            run.leave()
            monkeypatch.undo()
            raise KeyboardInterrupt

    args = SCRIPTS[algorithm].Args(**(SHORT[algorithm] | options | {"runs_dir": str(tmp_path), "run_name": "a"}))
    monkeypatch.setattr(Run, "checkpoint_if_due", stops)
    with pytest.raises(KeyboardInterrupt):
        SCRIPTS[algorithm].train(args)
    resumed = SCRIPTS[algorithm].train(args)
    assert same_bits(resumed, scratch)

    tensors, said = weights(scratch), summary(scratch)
    assert [len(tensors[f"{name}.bias"]) for name in ("conv1", "conv2", "conv3", "fc1")] == [4, 8, 8, 8]
    whole = {name: t.numel() for name, t in weights(dense).items()}
    assert said["total"] == sum(whole.values()) and said["total"] - said["pruned"] == sum(t.numel() for t in tensors.values())
    assert {name: count["total"] for name, count in said["tensors"].items()} == whole
    assert said["parameters"] == said["total"] - said["pruned"] and summary(dense)["parameters"] == said["total"]
    shares = {row["tag"]: float(row["value"]) for row in rows(scratch / "curves.csv") if row["tag"].startswith("prune/")}
    assert shares["prune/sparsity"] == said["sparsity"] and shares["prune/sparsity_conv1.weight"] == 0.5
    run = read_run(scratch)
    read_results(run, window=1)  # the report takes it
    assert run.finished
    network, _ = common.load(str(scratch), NETWORKS[algorithm])
    assert all(torch.equal(p, tensors[name]) for name, p in network.named_parameters())


@both
def test_a_dense_network_of_the_width_that_a_structured_cut_leaves_has_its_shapes(algorithm):
    small = NETWORKS[algorithm](6, SCRIPTS[algorithm].Args(width=0.5).widths)
    network = NETWORKS[algorithm](6)
    remove_units(SCRIPTS[algorithm].choose_units(network, "l1-structured", 0.5, 1), [network])
    assert [p.shape for p in small.parameters()] == [p.shape for p in network.parameters()]
    assert SCRIPTS[algorithm].Args(width=0.25, hidden_size=64).widths == (8, 16, 16, 16)


def test_kernels_stay_channels_last_after_a_structured_cut():
    network = ppo.Agent(6, WIDTHS).to(memory_format=torch.channels_last)
    remove_units(ppo.choose_units(network, "l1-structured", 0.5, 1), [network])
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)
