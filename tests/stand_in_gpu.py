"""A GPU of stand-ins, for machines without one: the code for CUDA graphs runs, on memory and operations of the CPU.

Device memory is a clone, so that what is not copied is missing. A CUDA graph is the operations that were recorded, replayed on
the memory that they had then, without any Python of the function. Most of what a capture forbids is an error: transfers,
numbers read on the host, boolean indices, an unregistered generator. Not covered: kernels, TF32, CUDA's generators and streams,
Adam with `capturable`, operations that mix tensors of CPU and GPU.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prune_utils.run import Run

CPU = torch.device("cpu")
aten = torch.ops.aten
SYNCHRONISING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
FROM_HOST = {"item", "tolist", "numpy", "tensor", "as_tensor", "new_tensor"}


def tensors(values) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


class Recorder(TorchDispatchMode):
    """Keeps every operation with the memory that it reads and writes now, whatever a parameter gets later."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        assert func not in SYNCHRONISING and not by_mask, f"{func} is not permitted while a graph is captured"
        out = func(*args, **(kwargs or {}))
        memory = tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, (args, kwargs or {}, tensors(out)))
        self.operations.append((func, *memory))
        return out


class Device(TorchFunctionMode):
    """Puts what is meant for cuda on the CPU; a transfer is a copy."""

    def __init__(self):
        super().__init__()
        self.captures = self.replays = 0
        self.recorder: Recorder | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if func is torch.device or name == "device":
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        to_cuda = [x for x in (*args, kwargs.get("device")) if isinstance(x, torch.device) and x.type == "cuda"]
        args = tuple(CPU if isinstance(x, torch.device) else x for x in args)
        kwargs |= {"device": CPU} if "device" in kwargs else {}
        transfer = name == "cpu" or (name == "to" and bool(to_cuda))
        forbidden = self.recorder is not None and (transfer or name in FROM_HOST)
        assert not forbidden, f"{name} is not permitted while a graph is captured"
        out = func(*args, **kwargs)
        if transfer and out.numel() and out.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr():
            out = out.detach().clone(memory_format=torch.preserve_format)
        return out


class Graph:
    """torch.cuda.CUDAGraph of a Device."""

    def __init__(self, device: Device):
        self.device, self.operations, self.generators = device, [], []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    @torch.no_grad()
    def replay(self) -> None:
        self.device.replays += 1
        for func, args, kwargs, outputs in self.operations:
            for output, value in zip(outputs, tensors(func(*args, **kwargs)), strict=True):
                if output.numel() and output.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                    output.copy_(value)


@contextmanager
def capturing(graph: Graph):
    """torch.cuda.graph."""
    device, recorder = graph.device, Recorder()
    device.captures += 1
    device.recorder = recorder
    try:
        with recorder:
            yield
    finally:
        device.recorder = None
    drawn_from = [x for operation in recorder.operations for x in tree_leaves(operation) if isinstance(x, torch.Generator)]
    seeds = {generator.initial_seed() for generator in graph.generators}  # objects that wrap a generator differ
    assert {generator.initial_seed() for generator in drawn_from} <= seeds, "a generator is not registered with its graph"
    graph.operations = recorder.operations


class Stream:
    def wait_stream(self, other) -> None:
        pass


@contextmanager
def stand_in_gpu():
    """Inside, torch.cuda has a GPU. Yields its Device, which counts captures and replays."""
    device = Device()
    stand_ins = {"is_available": lambda: True, "get_device_name": lambda: "a stand-in", "max_memory_allocated": lambda: 1}
    stand_ins |= {"get_device_capability": lambda: (9, 0), "mem_get_info": lambda: (10**11, 10**11)}
    stand_ins |= {"Stream": Stream, "current_stream": Stream, "stream": lambda stream: nullcontext()}
    stand_ins |= {"CUDAGraph": lambda: Graph(device), "graph": capturing}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stand_ins.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(Run, "generator", lambda run, purpose: torch.Generator().manual_seed(run.seed(purpose)))
        # Adam asks the driver whether a graph is captured; the name of torch 2.13, and the one before it
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, lambda optimizer: None, raising=False)
        with device:
            yield device
