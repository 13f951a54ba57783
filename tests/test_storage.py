"""The bytes of a network in each format, and the packed form: bit for bit, smaller than the others, and safe to open."""

import hashlib
import io
import random
import zlib

import numpy as np
import pytest
import torch
import zstandard

from evals import storage
from tests.conftest import SCRIPTS, summary, weights

NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}
RATES = [0.0, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0]
both = pytest.mark.parametrize("algorithm", NETWORKS)


def pruned(tensors: dict[str, torch.Tensor], prune_type: str, rate: float) -> dict[str, torch.Tensor]:
    masks = SCRIPTS["ppo"].make_masks(tensors, prune_type, rate, "layer", seed=1)
    return {name: t * masks[name] + 0.0 for name, t in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names in the same order, types, shapes and bits: torch.equal alone knows no nan and no -0.0."""
    raw = [[t.contiguous().reshape(-1).view(torch.uint8) for t in tensors.values()] for tensors in (a, b)]
    told = [[(name, t.dtype, t.shape) for name, t in tensors.items()] for tensors in (a, b)]
    return told[0] == told[1] and all(map(torch.equal, *raw))


# ---------------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.8, 0.95])
@both
def test_bytes_of_each_format_are_what_its_values_and_indices_add_up_to(algorithm, rate):
    tensors = pruned(NETWORKS[algorithm](6).state_dict(), "random", rate)
    expected = dict.fromkeys(("dense", "coo", "csr_int64", "csr_int32", "bitmask", "bitmask_fp16_lossy"), 0)
    for t in tensors.values():
        nonzero, total = int(t.count_nonzero()), t.numel()
        vector = 4 * total
        expected["dense"] += 4 * total
        expected["coo"] += nonzero * (8 * t.dim() + 4) if t.dim() > 1 else vector
        expected["csr_int64"] += nonzero * (8 + 4) + 8 * (len(t) + 1) if t.dim() > 1 else vector
        expected["csr_int32"] += nonzero * (4 + 4) + 4 * (len(t) + 1) if t.dim() > 1 else vector
        expected["bitmask"] += 4 * nonzero + total / 8 if t.dim() > 1 else vector
        expected["bitmask_fp16_lossy"] += 2 * nonzero + total / 8 if t.dim() > 1 else vector
    sizes = storage.storage_bytes(tensors)
    assert sizes.keys() - expected.keys() == {"zlib_of_dense", "zstd_of_dense", "packed"}
    for name, size in expected.items():
        assert 0 < sizes[name] - size < 12_000  # the archive around the tensors
        assert storage.formula_bytes(tensors, name) == pytest.approx(size)


def test_break_even_rates_are_those_worked_by_hand():
    # n entries, s of them zero. COO of a kernel (4 * 8 + 4)(1 - s) n = 4n: 8/9; of a matrix (2 * 8 + 4)(1 - s) n = 4n: 4/5
    kernel, matrix = {"w": torch.ones(8, 8, 8, 8)}, {"w": torch.ones(512, 4096)}
    assert storage.break_even(kernel)["coo"] == pytest.approx(8 / 9)
    assert storage.break_even(matrix)["coo"] == pytest.approx(4 / 5)
    # CSR: 12 (1 - s) n + 8 * 513 = 4n; 8 (1 - s) n + 4 * 513 = 4n; bitmask: 4 (1 - s) n + n / 8 = 4n; its fp16 always
    n = 512 * 4096
    even = storage.break_even(matrix)
    assert even["csr_int64"] == pytest.approx(2 / 3 + 8 * 513 / 12 / n)
    assert even["csr_int32"] == pytest.approx(1 / 2 + 4 * 513 / 8 / n)
    assert even["bitmask"] == pytest.approx(1 / 32) and even["bitmask_fp16_lossy"] == 0


def test_a_crossing_is_where_the_ratio_falls_below_1_for_good():
    # from 2 at .5 to .5 at .8 it falls by 1.5, the first 1 of which leads to 1: .5 + .3 * 1 / 1.5 = .7
    assert storage.crossing([0.0, 0.5, 0.8], [3.0, 2.0, 0.5]) == pytest.approx(0.7)
    assert storage.crossing([0.0, 0.5, 0.8, 0.9], [0.9, 1.0, 0.5, 0.4]) == pytest.approx(0.5)
    assert storage.crossing([0.0, 0.5], [0.9, 0.8]) == 0.0 and storage.crossing([0.0, 0.5], [0.9, 1.1]) is None


# ----------------------------------------------------------------------------------------------------------- packed form
@pytest.mark.parametrize("prune_type", ["l1", "random"])
@both
def test_packed_trained_weights_come_back_and_are_smaller_than_the_formula_zlib_and_zstd(small_run, algorithm, prune_type):
    trained = weights(small_run(algorithm, prune_type="none"))
    for rate in RATES:
        tensors = pruned(trained, prune_type, rate)
        packed = storage.pack(tensors)
        assert same(storage.unpack(packed), tensors) and storage.pack(tensors) == packed
        if not 0 < rate < 1:
            continue
        dense = storage.saved(tensors, lambda t: t)
        nonzero, total = (sum(count(t) for t in tensors.values()) for count in (torch.count_nonzero, torch.numel))
        assert len(packed) <= 0.88 * (4 * int(nonzero) + total / 8)
        assert len(packed) < min(len(zlib.compress(dense, 6)), len(zstandard.compress(dense, 3)))
        if rate == 0.95:  # where it comes nearest; the strongest levels take seconds
            assert len(packed) < min(len(zlib.compress(dense, 9)), len(zstandard.compress(dense, 19)))


def test_every_type_shape_and_special_value_comes_back_bit_for_bit():
    g = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38])
    tensors = {f"float{t}": special.to(t) for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    odd_nan = torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32)
    tensors |= {"nan": odd_nan, "scalar": torch.tensor(3.0), "zero": torch.tensor(0.0), "empty": torch.empty(0, 5)}
    tensors |= {"bool": torch.tensor([True, False]), "int": torch.tensor([[0, -1, 2**62]]), "byte": torch.arange(256).byte()}
    for shape in ((), (1,), (7, 3), (2, 3, 4, 5)):
        for rate in (0.0, 0.3, 1.0):
            t = torch.randn(shape, generator=g)
            tensors[f"{shape} {rate}"] = torch.where(torch.rand(shape, generator=g) < rate, 0.0, t)
    tensors["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert same(storage.unpack(storage.pack(tensors)), tensors)
    for name, t in tensors.items():
        assert same(storage.unpack(storage.pack({name: t})), {name: t})


def test_a_packed_file_that_is_cut_short_or_altered_anywhere_is_refused():
    packed = storage.pack({"w": torch.randn(20, 30)})
    for end in (0, 1, 63, 64, 65, len(packed) // 2, len(packed) - 1):
        with pytest.raises(storage.BrokenFile, match="cut short, altered"):
            storage.unpack(packed[:end])
    for place in range(0, len(packed), 7):
        altered = bytearray(packed)
        altered[place] ^= 1 << place % 8
        with pytest.raises(storage.BrokenFile):
            storage.unpack(bytes(altered))


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    "change",
    [
        {"header": np.array([Runs()], dtype=object)},
        {"values_4": np.array([Runs()], dtype=object)},
        {"header": '[["w", "load", [4]]]'},
        {"header": '[["w", "_inductor", [4]]]'},
        {"header": '[["w", "float32", [1000000000000]]]'},
        {"header": '[["w", "float32", [2]], ["w", "float32", [2]]]'},
        {"values_4": np.zeros((8, 3), np.uint8)},
        {"values_4": np.zeros((1, 3), np.float32)},
        {"header": '[["w", "float32", [9]]]'},
        {"header": '[["w", "float32", [40]]]'},
        {"header": '[["w", "float32", [-4]]]'},
        {"header": "[["},
        {"values_4": np.zeros((4, 1), np.uint8)},
        {"values_4": np.zeros((4, 5), np.uint8)},
        {"mask": np.zeros(0, np.uint8)},
    ],
)
def test_a_file_that_a_stranger_made_is_refused_and_nothing_in_it_runs(change):
    packed = storage.pack({"w": torch.tensor([1.0, 2.0, 0.0, 3.0])})
    arrays = dict(np.load(io.BytesIO(packed)))
    assert bytes(arrays["header"]) == b'[["w", "float32", [4]]]'
    file = io.BytesIO()
    change = {key: np.frombuffer(x.encode(), np.uint8) if isinstance(x, str) else x for key, x in change.items()}
    np.savez_compressed(file, **(arrays | change))
    data = file.getvalue()
    with pytest.raises(storage.BrokenFile, match="no packed model"):
        storage.unpack(data + hashlib.sha256(data).hexdigest().encode())
    file = io.BytesIO()
    torch.save({"w": Runs()}, file)
    with pytest.raises(storage.BrokenFile, match="cut short, altered"):
        storage.unpack(file.getvalue())


def test_noise_is_refused():
    noise = random.Random(1).randbytes(1000)
    with pytest.raises(storage.BrokenFile):
        storage.unpack(noise + hashlib.sha256(noise).hexdigest().encode())


@both
def test_a_run_leaves_its_packed_model_and_its_summary_weighs_every_file(small_run, algorithm):
    folder = small_run(algorithm, prune_type="l1", prune_rate=0.5)
    tensors = weights(folder)
    assert same(storage.unpack((folder / "model_packed.npz").read_bytes()), tensors)
    told = summary(folder)
    assert told["disk"] == storage.storage_bytes(tensors)
    assert told["disk"]["packed"] == (folder / "model_packed.npz").stat().st_size
    assert told["disk"]["dense"] == (folder / "model.pt").stat().st_size
    assert told["disk_break_even_rate"] == storage.break_even(tensors)
