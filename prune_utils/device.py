"""The machine that trains: threads and precision, memory, CUDA graphs, low-precision copies, layouts."""

import copy
import inspect
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from prune_utils.basics import check, say

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
"""of weights and activations; tf32 rounds them inside the products of a GPU"""
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    2: ("memory.max", "memory.current", "file"),
}
"""of a cgroup, by version: its limit, its usage, and the entry of memory.stat that counts cached files"""


# --------------------------------------------------------------------------------------------------------------- machine
def cgroup_folders(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """The folders that may limit a controller for this process, each with its cgroup version, 1 or 2. Not all of them exist."""
    file = root / "proc" / "self" / "cgroup"
    for entry in file.read_text().splitlines() if file.exists() else []:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            version, mount = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, mount = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        group = mount / path.strip("/")  # in a container it may not be there, but its root is
        yield from ((version, folder) for folder in (group, *group.parents))  # there are no such files above the mount


def cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: its affinity, and the quotas of the cgroups around it, rounded down."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, folder in cgroup_folders("cpu", root):
        with suppress(OSError, ValueError):  # no such group; no quota, which is written as `max` or -1
            names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            count = min(count, max(1, quota // period)) if quota > 0 else count
    return count


def uses_cuda(cuda: bool) -> bool:
    """Whether a run with --cuda (or --no-cuda) trains on a GPU here."""
    return cuda and torch.cuda.is_available()


def resolve(cuda: bool, precision: str, num_threads: int, recorded: dict) -> dict:
    """What the options become on this machine. A run that resumes or forks keeps its recorded precision and threads."""
    device = "cuda" if uses_cuda(cuda) else "cpu"
    tf32 = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)  # fp32 products with 11 significant bits, faster
    rule = "be auto, bf16 or fp32 where no GPU of compute capability 8.0 or more is used"
    check(precision != "tf32" or tf32, "precision", rule, precision)
    if precision == "auto":
        here = "tf32" if tf32 else "fp32"  # bf16 is faster on some CPUs, but PPO may learn less in it (docs/study.md)
        precision = recorded.get("precision", here)
        precision = here if precision == "tf32" and not tf32 else precision  # the run then refuses to go on here
    return {"device": device, "precision": precision, "num_threads": num_threads or recorded.get("num_threads") or cores()}


def configure(num_threads: int, precision: str, deterministic: bool) -> None:
    """Set torch's global switches for a training."""
    torch.set_flush_denormal(True)  # Adam's moments of dead weights decay into denormals, which made its step 16 times slower
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # PyTorch's default is True
    if num_threads > 1 and os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        say(f"other processes keep the cores busy: --num-threads 1 may be faster than {num_threads} threads", error=True)


@contextmanager
def true_fp32() -> Iterator[None]:
    """Context manager and decorator: TF32 is off inside and restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def device_name(device: str) -> str:
    """Model of the GPU or the CPU. The same bits are promised on the same model only."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpus.read_text()) if cpus.exists() else None
    return model[1] if model else platform.machine()


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Free and total bytes of memory for this process: the least of the machine's and those of each cgroup around it."""
    meminfo = root / "proc" / "meminfo"
    if not meminfo.exists():  # no Linux
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    sizes = {name: 1024 * int(kilobytes) for name, kilobytes in re.findall(r"(\w+): +(\d+) kB", meminfo.read_text())}
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    for version, folder in cgroup_folders("memory", root):
        limit_file, usage_file, cache = MEMORY_FILES[version]
        with suppress(OSError, ValueError, KeyError):  # no such group; no limit, which is written as `max`
            limit = int((folder / limit_file).read_text())
            stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage_file).read_text()) - int(stat[cache])  # cached files give way
            free, total = min(free, limit - used), min(total, limit)
    return free, total


def memory_bytes(cuda: bool) -> int:
    """Total memory of the GPU that a run trains on, or else of the machine, whatever other runs hold now."""
    return torch.cuda.mem_get_info()[1] if uses_cuda(cuda) else memory()[1]


def peak_ram_bytes(pid: int | str = "self") -> int | None:
    """Peak memory of a process; None where Linux does not tell. (ru_maxrss begins at that of the program before exec.)"""
    status = Path(f"/proc/{pid}/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(peak[1]) if peak else None


# ----------------------------------------------------------------------------------------------------------------- speed
class PreallocatedAdam(torch.optim.Adam):
    """Fused Adam whose state and learning rate are tensors that exist from the start and never move.

    A CUDA graph would keep the value of a float learning rate, and the addresses of tensors that were replaced.
    """

    # without decorators, which import torch._dynamo: a second and 70 MB for each process
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def __init__(self, parameters, lr: float, eps: float):
        parameters = list(parameters)
        device = parameters[0].device
        super().__init__(parameters, lr=torch.tensor(lr, device=device), eps=eps, fused=True, capturable=device.type == "cuda")
        for p in parameters:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.state[p] = {"step": torch.zeros((), device=device)} | moments

    def load_state_dict(self, state: dict) -> None:
        for tensors, saved in zip(self.state.values(), state["state"].values(), strict=True):
            for name, t in tensors.items():
                t.copy_(saved[name])


class Inbox:
    """Arrays that the host fills and the device reads. Their addresses stay, and on a GPU one copy sends all of them.

    `inbox[name]` lies on the device. `put(name=array, ...)` fills and sends, on a GPU from pinned memory. That memory must not
    be filled again before the copy is done: read a number computed from it back to the host first.
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

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def put(self, **arrays) -> None:
        for name, array in arrays.items():
            self.arrays[name][...] = array
        if self.sent is not self.host:
            self.sent.copy_(self.host, non_blocking=True)


def graphed(device: torch.device, changes: tuple = ()) -> Callable:
    """Decorator: on a GPU a call replays a CUDA graph of the function, captured at its first call; on a CPU it is the function.

    The function works on tensors that stay where they are, and its outputs are overwritten by its next call. Its arguments are
    constants: each value gets a graph of its own. `changes` names what the function changes (modules, optimizers, tensors,
    generators), so that its warm-up calls can be undone. Call `forget_graphs()` once they are stale.
    """

    def decorate(function: Callable) -> Callable:
        graphs: dict[tuple, tuple] = {}

        def call(*constants):
            if device.type != "cuda":
                return function(*constants)
            if constants not in graphs:
                graphs[constants] = capture(partial(function, *constants), changes)
            graph, outputs = graphs[constants]
            graph.replay()
            return outputs

        call.forget_graphs = graphs.clear
        return call

    return decorate


def capture(function: Callable, changes: tuple) -> tuple[torch.cuda.CUDAGraph, object]:
    """A CUDA graph of the function and its outputs. Weights, moments and generators end as they were before."""
    generators = [part for part in changes if isinstance(part, torch.Generator)]
    tensors = [t for part in changes if not isinstance(part, torch.Generator) for t in tensors_of(part)]
    before, states = [t.clone() for t in tensors], [g.get_state() for g in generators]
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
    for t, saved in zip(tensors, before, strict=True):
        t.copy_(saved)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return graph, outputs


def tensors_of(part) -> list[torch.Tensor]:
    """The tensors of a tensor, a module or an optimizer."""
    if isinstance(part, torch.optim.Optimizer):
        return [t for state in part.state.values() for t in state.values()]
    return [part.detach()] if isinstance(part, torch.Tensor) else [p.detach() for p in part.parameters()]


# -------------------------------------------------------------------------------------------------------------- networks
def scaled(obs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 frames as [0, 1] in dtype, channels last. Frames that are scaled already stay as they are."""
    if obs.is_floating_point():
        return obs
    return obs.contiguous(memory_format=torch.channels_last).to(dtype).div_(255)


class FoldedConv2d(nn.Conv2d):
    """nn.Conv2d with space-to-depth along the rows: `stride` pixels are read as one with `stride` times the channels.

    Views alone, if all is channels last. The sums are equal, but oneDNN computes gradients of a layer without horizontal stride
    up to 1.4 times as fast in fp32 and 1.2 in bf16 (results/LOG.md). The stride divides the width of input and kernel.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.out_channels == 1:  # in bf16, oneDNN leaves a folded kernel of one channel to code that refuses its layout
            return super().forward(x)
        down, across = self.stride

        def fold(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(3, (-1, across)).movedim(4, 1).flatten(1, 2)

        return F.conv2d(fold(x), fold(self.weight), self.bias, stride=(down, 1))


def fp32_copy(network: nn.Module) -> nn.Module:
    """A copy in contiguous fp32, as a reader of model.pt would build it. It is what evaluations play."""
    network = copy.deepcopy(network).float()
    for p in network.parameters():
        p.data = p.data.contiguous()
    return network


def low_precision(network: nn.Module, dtype: torch.dtype, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """What computes: in fp32 the network itself, else a copy in dtype whose gradients arrive at the network in fp32.

    The network keeps the master weights (https://arxiv.org/abs/1710.03740). The copy renews itself after each step of the
    optimizer and each load_state_dict of the network. Its HEADS are shared with the network and stay fp32: in bf16, values
    between 2 and 4 would come in steps of 1/64.
    """
    if dtype == torch.float32:
        return network
    low = copy.deepcopy(network).to(dtype)
    for head in network.HEADS:
        setattr(low, head, getattr(network, head))
    pairs = [(p, master) for p, master in zip(low.parameters(), network.parameters(), strict=True) if p is not master]

    @torch.no_grad()
    def renew(*_) -> None:
        for p, master in pairs:
            p.copy_(master)

    gradients = {p: torch.empty_like(master) for p, master in pairs if p.requires_grad}  # in fp32, at addresses that stay

    def deliver(master: nn.Parameter, p: nn.Parameter) -> None:
        if gradients[p].shape != p.shape:  # units were removed
            gradients[p] = torch.empty_like(master)
        master.grad, p.grad = gradients[p].copy_(p.grad), None

    for p, master in pairs:
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(partial(deliver, master))
    network.register_load_state_dict_post_hook(renew)
    if optimizer is not None:
        optimizer.register_step_post_hook(renew)
    return low
