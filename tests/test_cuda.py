"""On a GPU: a captured run is the eager run, bit for bit, and takes no more memory when it is longer."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn as nn

from checks.kill_runs import bits
from dqn_atari_prune import mask_gradients
from prune_utils.device import PreallocatedAdam, configure, graphed, low_precision, resolve, true_fp32
from tests.conftest import SCRIPTS, SMALL, flags, summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
both = pytest.mark.parametrize("algorithm", SCRIPTS)


def eager(device: torch.device, changes: tuple = ()) -> Callable:
    """`graphed` without graphs: the function itself, as on a CPU."""
    return graphed(torch.device("cpu"), changes)


def test_a_captured_function_does_what_it_does_eagerly_and_warming_it_up_changes_nothing():
    """Weights, moments and random numbers of three calls, whose graphs are captured anew for new constants."""
    ends = []
    for decorator in (graphed, eager):
        torch.manual_seed(0)
        network = nn.Linear(16, 16).cuda()
        optimizer = PreallocatedAdam(network.parameters(), lr=1e-2, eps=1e-8)
        generator, total = torch.Generator("cuda").manual_seed(1), torch.zeros(1, device="cuda")
        masks: dict[str, torch.Tensor] = {}

        @decorator(torch.device("cuda"), changes=(network, optimizer, generator, total))
        def learn(scale: int, network=network, optimizer=optimizer, generator=generator, total=total, masks=masks):
            x = torch.rand(8, 16, generator=generator, device="cuda")
            optimizer.zero_grad()
            loss = (network(x) ** 2).mean() * scale
            loss.backward()
            mask_gradients(network, masks)
            optimizer.step()
            total.add_(loss.detach())
            return loss.detach()

        losses = [learn(scale).item() for scale in (1, 2, 1)]
        masks["weight"] = torch.zeros_like(network.weight)
        learn.forget_graphs()
        before = network.weight.detach().clone()
        for state in optimizer.state.values():
            state["exp_avg"].zero_()
        losses.append(learn(1).item())
        assert torch.equal(network.weight, before)  # the new masks are in the new graph
        ends.append((losses, total.item(), network.weight.tolist(), network.bias.tolist()))
    assert ends[0] == ends[1]


@both
def test_a_low_precision_copy_follows_the_steps_that_a_graph_takes(algorithm):
    network_class = SCRIPTS[algorithm].QNetwork if algorithm == "dqn" else SCRIPTS[algorithm].Agent
    network = network_class(6, (32, 64, 64, 64)).cuda().to(memory_format=torch.channels_last)
    optimizer = PreallocatedAdam(network.parameters(), lr=1e-2, eps=1e-8)
    low = low_precision(network, torch.bfloat16, optimizer)
    obs = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8, device="cuda")

    @graphed(torch.device("cuda"), changes=(network, low, optimizer))
    def learn() -> None:
        optimizer.zero_grad()
        outputs = low(obs)
        sum((x**2).mean() for x in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        optimizer.step()

    for _ in range(3):
        before = network.fc1.weight.detach().clone()
        learn()
        assert not torch.equal(network.fc1.weight, before)
        assert all(torch.equal(p, master.to(p.dtype)) for p, master in zip(low.parameters(), network.parameters(), strict=True))


@both
@pytest.mark.parametrize(
    ("prune_type", "precision", "cuts"),
    [("l1", "auto", 1), ("l1", "bf16", 1), ("l1-structured", "auto", 1), ("l1-structured", "bf16", 1), ("random", "auto", 3)],
)
def test_a_run_of_cuda_graphs_ends_in_the_same_bits_as_one_without_them(
    small_run, algorithm, prune_type, precision, cuts, monkeypatch
):
    options = {"width": 1.0, "prune_rate": 0.5, "prune_type": prune_type, "precision": precision, "prune_cuts": cuts}
    captured = small_run(algorithm, **options)
    monkeypatch.setattr(SCRIPTS[algorithm], "graphed", eager)
    assert bits(small_run(algorithm, name="eager", **options)) == bits(captured)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs a GPU that computes in TF32"
)
def test_products_and_convolutions_are_rounded_in_tf32_alone_and_not_in_what_is_evaluated(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    torch.manual_seed(0)
    layers = {"products": nn.Linear(1024, 1024).cuda(), "convolutions": nn.Conv2d(64, 64, 3).cuda()}
    inputs = {"products": torch.randn(256, 1024, device="cuda"), "convolutions": torch.randn(32, 64, 32, 32, device="cuda")}

    @torch.no_grad()
    def errors() -> list[float]:
        """Largest error of each layer in shares of its largest output; fp32 rounds to 6e-8, TF32 to 5e-4."""
        found = []
        for name, layer in layers.items():
            exact = copy.deepcopy(layer).double()(inputs[name].double())
            found.append(float((layer(inputs[name]) - exact).abs().max() / exact.abs().max()))
        return found

    with true_fp32():  # afterwards all is as before
        for precision, rounds in (("tf32", True), ("fp32", False), ("bf16", False)):
            configure(1, precision, deterministic=True)
            assert [error > 3e-5 for error in errors()] == [rounds] * 2
            with true_fp32():
                assert max(errors()) < 3e-5
    assert resolve(True, "auto", 1, {})["precision"] == "tf32"


@both
def test_gpu_memory_does_not_grow_with_the_length_of_a_run(algorithm, tmp_path):
    peaks = []
    for steps in (3072, 9216):  # each in a process of its own: what a run leaves to the garbage collector is not the next one's
        options = SMALL[algorithm] | {"width": 1.0, "eval_episodes": 0, "runs_dir": tmp_path}
        options |= {"run_name": steps, "total_timesteps": steps}
        subprocess.run([sys.executable, SCRIPTS[algorithm].__file__, *flags(options)], check=True)
        peaks.append(summary(tmp_path / str(steps))["time"]["peak_gpu_bytes"])
    assert peaks[1] <= 1.02 * peaks[0]
