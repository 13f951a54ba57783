"""What computes and how: low-precision copies, folded convolutions, Adam, CUDA graphs on a CPU, arrays for the device."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import dqn_atari_prune as dqn
import ppo_atari_prune as ppo
from checks.kill_runs import bits
from prune_utils import device
from prune_utils.basics import UserError
from prune_utils.device import FoldedConv2d, Inbox, PreallocatedAdam, fp32_copy, graphed, low_precision, resolve, scaled
from tests.conftest import SCRIPTS, SHORT
from tests.stand_in_gpu import stand_in_gpu
from tests.test_learning_mathematics import frames, generator, ppo_minibatch
from tests.test_resume import same_bits

NETWORKS = {"dqn": dqn.QNetwork, "ppo": ppo.Agent}
both = pytest.mark.parametrize("algorithm", NETWORKS)


def build(algorithm: str, hidden_size: int = 512) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[algorithm](6, (32, 64, 64, hidden_size)).to(memory_format=torch.channels_last)


def dqn_batch(n: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    actions, rewards = torch.arange(n) % 6, torch.randn(n, generator=generator(seed))
    return frames(n, seed + 1), actions, rewards, frames(n, seed + 2), torch.arange(n) % 4 == 0


def update(algorithm: str, network, low, optimizer, n: int = 32, seed: int = 0) -> None:
    """One update of the script from a made-up batch; DQN's target network is another one, always the same."""
    if algorithm == "dqn":
        torch.manual_seed(99)
        target = low_precision(dqn.QNetwork(6, (32, 64, 64, network.fc1.out_features)), low.conv1.weight.dtype)
        dqn.update(network, low, target, optimizer, {}, dqn_batch(n, seed), n, 0.99)
    else:
        ppo.update(network, low, optimizer, {}, ppo_minibatch(network, n), ppo.Args())


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# ------------------------------------------------------------------------------------------------------ folded convolutions
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_folded_convolution_and_its_gradients_are_those_of_a_plain_one(layer, memory_format):
    folded = getattr(build("dqn"), layer).to(torch.float64, memory_format=memory_format)
    assert isinstance(folded, FoldedConv2d)
    x = torch.randn(3, folded.in_channels, 84, 84, dtype=torch.float64, generator=generator())
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    inputs = (x, folded.weight, folded.bias)
    ours, plain = folded(x), torch.nn.functional.conv2d(*inputs, stride=folded.stride)
    grad = torch.randn(plain.shape, dtype=torch.float64, generator=generator(1))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(plain, inputs, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_that_is_left_with_one_channel_still_learns(dtype):
    torch.manual_seed(0)
    layer = FoldedConv2d(4, 1, 8, stride=4).to(dtype, memory_format=torch.channels_last)
    x = torch.rand(3, 4, 84, 84).to(dtype, memory_format=torch.channels_last)
    layer(x).float().sum().backward()
    expected = x.float().unfold(2, 8, 4).unfold(3, 8, 4).sum(dim=(0, 2, 3))  # of each weight: the sum of what it reads
    torch.testing.assert_close(layer.weight.grad[0].float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_channels_last_a_convolution_is_folded_without_a_copy(layer):
    folded = getattr(build("dqn"), layer)
    x = torch.randn(3, folded.in_channels, 84, 84).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.ones_like(folded(x))
    with torch.profiler.profile() as profile:
        folded(x).backward(grad)
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names and not names & {"aten::clone", "aten::contiguous"}
    assert folded.weight.grad.is_contiguous(memory_format=torch.channels_last)


@both
def test_a_network_of_folded_convolutions_has_the_parameters_names_and_function_of_one_of_plain_ones(algorithm):
    folded = NETWORKS[algorithm](6, (32, 64, 64, 64))
    plain = copy.deepcopy(folded)
    assert [type(layer) for layer in (folded.conv1, folded.conv2, folded.conv3)] == [FoldedConv2d, FoldedConv2d, nn.Conv2d]
    plain.conv1.__class__ = plain.conv2.__class__ = nn.Conv2d
    states = plain.state_dict(), folded.state_dict()
    assert list(states[0]) == list(states[1]) and all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    obs = frames(4, 1)
    with torch.no_grad():
        torch.testing.assert_close(folded(obs), plain(obs), rtol=1e-4, atol=1e-5)
    plain.load_state_dict(states[1])  # a file of one is a file of the other
    folded.load_state_dict(states[0])


# ---------------------------------------------------------------------------------------------------- low-precision copies
@both
def test_an_update_in_bf16_agrees_with_one_in_fp32_to_the_precision_of_bf16(algorithm):
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        network = build(algorithm)
        optimizer = PreallocatedAdam(network.parameters(), lr=1e-4, eps=1e-8)
        update(algorithm, network, low_precision(network, dtype, optimizer), optimizer, n=32 if algorithm == "dqn" else 256)
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999 and not torch.equal(*gradients)
    assert np.isclose(gradients[0].norm(), gradients[1].norm(), rtol=0.02)


@both
def test_a_copy_that_lasts_learns_what_one_made_anew_for_each_update_does(algorithm):
    ends = []
    for lasts in (True, False):
        network = build(algorithm, 64)
        optimizer = PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-8)
        low = low_precision(network, torch.bfloat16, optimizer)
        for k in range(4):
            low = low if lasts else low_precision(network, torch.bfloat16)
            update(algorithm, network, low, optimizer, seed=k)
        ends.append(flat(network))
    assert torch.equal(*ends)


@both
def test_heads_are_computed_in_fp32_where_the_body_runs_in_bf16(algorithm):
    network = build(algorithm, 32)
    low = low_precision(network, torch.bfloat16)
    assert all(getattr(low, head) is getattr(network, head) for head in network.HEADS)
    outputs = low(frames(64, 1))
    for values in outputs if isinstance(outputs, tuple) else (outputs,):
        assert values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


def test_in_fp32_the_network_itself_computes():
    network = build("dqn", 32)
    assert low_precision(network, torch.float32, PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-8)) is network


def is_rounded(low: nn.Module, network: nn.Module) -> bool:
    pairs = list(zip(low.parameters(), network.parameters(), strict=True))
    assert {p.dtype for p, _ in pairs} == {torch.bfloat16, torch.float32}  # body, heads
    return all(master.dtype == torch.float32 and torch.equal(p, master.to(p.dtype)) for p, master in pairs)


@both
def test_a_copy_is_renewed_by_every_step_of_the_optimizer_the_masks_and_every_loaded_state(algorithm):
    network = build(algorithm, 32)
    optimizer = PreallocatedAdam(network.parameters(), lr=1e-2, eps=1e-8)
    low = low_precision(network, torch.bfloat16, optimizer)
    addresses = [p.data_ptr() for p in low.parameters()]

    def changes(change) -> None:
        before = flat(low)
        change()
        assert is_rounded(low, network) and not torch.equal(flat(low), before)

    assert is_rounded(low, network)
    for seed in range(2):
        changes(lambda seed=seed: update(algorithm, network, low, optimizer, n=8, seed=seed))
    script = {"dqn": dqn, "ppo": ppo}[algorithm]
    masks = script.make_masks(script.prunable(network), "l1", 0.5, "layer", 0)
    changes(lambda: script.apply_masks(network, optimizer, masks))
    assert all((low.state_dict()[name][mask == 0] == 0).all() for name, mask in masks.items())
    changes(lambda: network.load_state_dict(NETWORKS[algorithm](6, (32, 64, 64, 32)).state_dict()))
    assert [p.data_ptr() for p in low.parameters()] == addresses  # a CUDA graph reads them there


def test_the_copy_of_a_target_network_is_renewed_by_every_sync():
    network, target = (dqn.QNetwork(6, (32, 64, 64, 32)) for _ in range(2))
    target.requires_grad_(False)
    low, start = low_precision(target, torch.bfloat16), flat(target)
    assert is_rounded(low, target) and not any(p.requires_grad for p in low.parameters())
    dqn.sync_target(target, network, tau=0.25)
    torch.testing.assert_close(flat(target), 0.25 * flat(network) + 0.75 * start)
    assert is_rounded(low, target) and not torch.equal(flat(target), start)
    dqn.sync_target(target, network, tau=1.0)
    assert torch.equal(flat(target), flat(network)) and is_rounded(low, target)


def test_what_is_evaluated_is_a_contiguous_fp32_copy_that_shares_nothing_with_the_network():
    network = build("dqn", 32)
    low_precision(network, torch.bfloat16, PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-8))
    evaluated, before = fp32_copy(network), flat(network)
    assert torch.equal(flat(evaluated), flat(network)) and all(p.is_contiguous() for p in evaluated.parameters())
    assert not network.conv1.weight.is_contiguous() and isinstance(evaluated.conv1, FoldedConv2d)
    for p in evaluated.parameters():
        p.data.zero_()
    assert torch.equal(flat(network), before)


def test_frames_are_scaled_to_0_to_1_channels_last_and_scaled_ones_stay_as_they_are():
    obs = frames(2, 1)
    x = scaled(obs, torch.float32)
    assert torch.equal(x, obs.float() / 255) and x.is_contiguous(memory_format=torch.channels_last)
    assert scaled(x, torch.bfloat16) is x


# -------------------------------------------------------------------------------------------------------- Adam and graphs
def test_a_restored_adam_goes_on_alike_and_its_tensors_stay_where_they_are():
    one, two = build("dqn", 8), build("dqn", 8)
    optimizers = [PreallocatedAdam(network.parameters(), lr=1e-3, eps=1e-8) for network in (one, two)]
    for k in range(3):
        update("dqn", one, one, optimizers[0], n=8, seed=k)
    # tensors of the state exist before the first step and are filled in place: a CUDA graph reads them there
    tensors = [t for state in optimizers[1].state.values() for t in state.values()]
    assert len(tensors) == 3 * len(list(two.parameters())) and not any(t.any() for t in tensors)
    addresses, learning_rate = [t.data_ptr() for t in tensors], optimizers[1].param_groups[0]["lr"]
    two.load_state_dict(one.state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert [t.data_ptr() for state in optimizers[1].state.values() for t in state.values()] == addresses
    for name in ("step", "exp_avg", "exp_avg_sq"):
        saved, restored = ([state[name] for state in optimizer.state.values()] for optimizer in optimizers)
        assert all(map(torch.equal, saved, restored)) and all(t.any() for t in restored)
    for k in range(3):
        for network, optimizer in zip((one, two), optimizers, strict=True):
            update("dqn", network, network, optimizer, n=8, seed=9 + k)
    assert torch.equal(flat(one), flat(two))
    assert [t.data_ptr() for state in optimizers[1].state.values() for t in state.values()] == addresses
    assert optimizers[1].param_groups[0]["lr"] is learning_rate


def test_a_training_loads_no_compiler(tmp_path):
    # torch.optim.Adam imports torch._dynamo, which costs each process a second and 70 MB
    code = "import sys; from tests.conftest import SCRIPTS, SHORT\n"
    code += "runs = [s.train(s.Args(**SHORT[a] | {'precision': 'bf16'}, runs_dir=sys.argv[1])) for a, s in SCRIPTS.items()]\n"
    code += "assert all((run / 'summary.json').exists() for run in runs) and 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[1], check=True)


def test_on_a_cpu_a_graphed_function_is_the_function_itself(monkeypatch):
    calls = []

    @graphed(torch.device("cpu"), changes=(torch.Generator(),))
    def function(*constants) -> int:
        calls.append(constants)
        return len(calls)

    monkeypatch.setattr(device, "capture", None)  # nothing is captured
    assert [function(), function(2), function(2)] == [1, 2, 3] and calls == [(), (2,), (2,)]
    function.forget_graphs()
    assert function(2) == 4


@torch.no_grad()
def test_warming_a_graph_up_is_undone_in_tensors_and_generators_whether_there_are_any_or_not():
    network, generator, total = nn.Linear(2, 2), torch.Generator().manual_seed(1), torch.zeros(1)
    optimizer = PreallocatedAdam(network.parameters(), lr=1e-2, eps=1e-8)
    tensors = [total, *network.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    before, draws = [t.clone() for t in [*tensors, generator.get_state()]], []

    def function() -> None:
        draws.append(torch.rand(1, generator=generator))
        for t in tensors:
            t.add_(1)

    with stand_in_gpu():
        device.capture(function, (network, generator, optimizer, total))
        device.capture(lambda: torch.rand(1, generator=generator), (generator,))  # as `act`
        device.capture(lambda: None, ())  # as `store`
    assert all(map(torch.equal, [*tensors, generator.get_state()], before)) and len(draws) == 4


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.tensor(1.0, device=torch.device("cuda")),
        lambda x: torch.rand(1, generator=torch.Generator()),
    ],
)
def test_the_stand_in_refuses_what_a_capture_forbids(function):
    with stand_in_gpu(), pytest.raises(AssertionError, match=r"is not (permitted|registered)"):
        device.capture(lambda: function(torch.ones(3)), ())


@pytest.mark.parametrize(("algorithm", "precision"), [("dqn", "fp32"), ("ppo", "bf16")])
def test_a_run_of_captured_graphs_ends_in_the_bits_of_one_without_on_a_gpu_of_stand_ins(algorithm, precision, small_run):
    options = SHORT[algorithm] | {"prune_rate": 0.5, "prune_type": "l1-structured", "precision": precision}
    plain = small_run(algorithm, **options, cuda=False)
    with stand_in_gpu() as gpu:
        assert bits(small_run(algorithm, "stand_in", **options)) == bits(plain)
    assert gpu.captures == {"dqn": 5, "ppo": 6}[algorithm] and gpu.replays > 50  # after the cut anew, but for DQN's `store`


@both
def test_a_run_that_pauses_and_its_fork_end_in_the_bits_of_the_arm_from_scratch_on_a_gpu_of_stand_ins(
    algorithm, small_run, tmp_path
):
    options = SHORT[algorithm] | {"prune_rate": 0.5, "precision": "fp32"}
    script, runs_dir = SCRIPTS[algorithm], str(tmp_path)
    dense = script.Args(**options, prune_type="none", runs_dir=runs_dir, run_name="dense")
    with stand_in_gpu():
        parent = script.train(replace(dense, until_cut=True))
        fork = script.train(script.Args(**options, prune_type="random", runs_dir=runs_dir, fork_from=str(parent)))
        assert script.train(dense) == parent
    assert same_bits(fork, small_run(algorithm, **options, prune_type="random", cuda=False))
    assert bits(parent) == bits(small_run(algorithm, **options, prune_type="none", cuda=False))


def test_an_inbox_brings_arrays_of_any_type_to_tensors_that_stay_where_they_are():
    flags, obs, epsilon = np.array([True, False, True]), np.arange(10, dtype=np.uint8).reshape(2, 5), np.float32([0.5])
    inbox = Inbox(torch.device("cpu"), flags=flags, obs=obs, epsilon=epsilon, places=np.array([[7, -8]]))
    types = {"flags": torch.bool, "obs": torch.uint8, "epsilon": torch.float32, "places": torch.int64}
    addresses = {name: inbox[name].data_ptr() for name in types}
    assert {name: inbox[name].dtype for name in types} == types and all(a % 8 == 0 for a in addresses.values())
    inbox.put(obs=obs + 1, epsilon=0.25)
    assert inbox["obs"].tolist() == (obs + 1).tolist() and inbox["epsilon"].tolist() == [0.25]
    assert inbox["flags"].tolist() == flags.tolist() and inbox["places"].tolist() == [[7, -8]]  # as they were
    inbox.arrays["flags"][1] = True  # filled in place, then sent
    inbox.put()
    assert inbox["flags"].all() and {name: inbox[name].data_ptr() for name in types} == addresses


# ---------------------------------------------------------------------------------------------------------------- machine
def test_a_run_that_goes_on_keeps_its_precision_and_threads_unless_told_otherwise():
    recorded = {"precision": "bf16", "num_threads": 77}
    assert resolve(False, "auto", 0, recorded) == {"device": "cpu", "precision": "bf16", "num_threads": 77}
    assert resolve(False, "fp32", 3, recorded) == {"device": "cpu", "precision": "fp32", "num_threads": 3}
    assert resolve(False, "auto", 0, {})["num_threads"] == device.cores()


def machine(root: Path, cgroup: str, files: dict[str, int | str]) -> Path:
    """A root folder of a machine with 16 GiB, 12 of them free, and these cgroups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal:  {16 << 20} kB\nMemFree: 5 kB\nMemAvailable:  {12 << 20} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(f"{text}\n")
    return root


GIB = 1 << 30
V2 = {"memory.max": 4 * GIB, "memory.current": 3 * GIB, "memory.stat": f"anon {GIB}\nfile {2 * GIB}"}  # 1 GiB is not cache
V1 = {"memory.limit_in_bytes": 4 * GIB, "memory.usage_in_bytes": 3 * GIB, "memory.stat": f"cache 0\ntotal_cache {2 * GIB}"}


@pytest.mark.parametrize(
    ("cgroup", "folder", "files"),
    [
        ("0::/", "", V2),  # a container
        ("0::/a/b", "a", V2 | {"b/memory.max": "max"}),  # a limit above
        ("0::/a/b", "a/b", V2),
        ("0::/docker/123", "", V2),  # the path of the host, seen in a container
        ("5:devices:/\n4:memory:/a\n0::/", "memory/a", V1),
        ("4:cpu,memory:/docker/123\n0::/", "memory", V1),
    ],
)
def test_the_memory_is_that_of_the_tightest_cgroup_and_cached_files_in_it_count_as_free(cgroup, folder, files, tmp_path):
    root = machine(tmp_path, cgroup, {os.path.join(folder, name): text for name, text in files.items()})
    assert device.memory(root) == (3 * GIB, 4 * GIB)


@pytest.mark.parametrize("cgroup", ["0::/a", "4:memory:/\n0::/", "1:cpu:/memory"])
def test_without_a_limit_the_memory_is_that_of_the_machine(cgroup, tmp_path):
    unlimited = {"a/memory.max": "max", "memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 0}
    root = machine(tmp_path, cgroup, unlimited | {"memory/memory.stat": "total_cache 0"})
    assert device.memory(root) == (12 * GIB, 16 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # two cores, a limit above
        ("0::/docker/123", {"cpu.max": "250000 100000"}, 2),  # the path of the host, seen in a container: 2.5 cores
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": 300000, "cpu/a/cpu.cfs_period_us": 100000}, 3),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000}, 4),  # no quota
        ("0::/a", {"a/cpu.max": "900000 100000"}, 4),  # no more than the affinity
        ("0::/a", {}, 4),
    ],
)
def test_the_cores_are_those_of_the_affinity_within_the_tightest_quota_of_a_cgroup(cgroup, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert device.cores(machine(tmp_path, cgroup, files)) == cores


def test_a_replay_buffer_has_to_fit_into_the_cgroup_and_not_only_into_the_machine(monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: (GIB, 4 * GIB))
    most = 4 * GIB // dqn.TRANSITION_BYTES
    with pytest.raises(
        UserError, match=rf"^--buffer-size must lie in \d+ to {most}: .*, at most the memory here, got 1000000$"
    ):
        dqn.Args(cuda=False)  # 7 GB
    assert dqn.Args(cuda=False, buffer_size=most).buffer_size == most


def test_configure_flushes_denormals_and_sets_threads_and_deterministic_algorithms():
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = cudnn.deterministic, cudnn.allow_tf32
    cudnn.deterministic = False
    torch.set_num_threads(2)
    try:
        device.configure(1, "fp32", deterministic=True)
        assert (torch.tensor([1e-40]) * 1.0).item() == 0 and torch.get_num_threads() == 1
        assert cudnn.deterministic
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.allow_tf32 = before
