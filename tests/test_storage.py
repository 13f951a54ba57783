"""The bytes of a network in each format, and the packed form: bit for bit, smaller than the others, and safe to open."""

import hashlib
import io
import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from prune_utils import storage
from prune_utils.run import load_checkpoint
from tests.conftest import SCRIPTS, SHORT, summary, weights

NETWORKS = {"dqn": SCRIPTS["dqn"].QNetwork, "ppo": SCRIPTS["ppo"].Agent}
RATES = [0.0, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0]
both = pytest.mark.parametrize("algorithm", NETWORKS)


def pruned(tensors: dict[str, torch.Tensor], prune_type: str, rate: float) -> dict[str, torch.Tensor]:
    masks = SCRIPTS["ppo"].make_masks(tensors, prune_type, rate, "layer", seed=1)
    return {name: t * masks[name] + 0.0 for name, t in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """The same names in the same order, types, shapes and bits: torch.equal alone knows no nan and no -0.0."""
    raw = [[t.contiguous().reshape(-1).view(torch.uint8) for t in tensors.values()] for tensors in (a, b)]
    names = [[(name, t.dtype, t.shape) for name, t in tensors.items()] for tensors in (a, b)]
    return names[0] == names[1] and all(map(torch.equal, *raw))


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


def test_real_files_are_smaller_than_the_dense_one_from_the_rates_on_that_are_worked_by_hand():
    # n entries, a share s of them zero. COO of a matrix: (2 * 8 + 4)(1 - s) n = 4n, 4/5; of a kernel (4 * 8 + 4)(1 - s) n: 8/9
    # CSR of 256 rows: 12 (1 - s) n + 8 * 257 = 4n; 8 (1 - s) n + 4 * 257 = 4n; bitmask: 4 (1 - s) n + n / 8 = 4n, 1/32
    n = 256 * 1024
    matrix = {"coo": 4 / 5, "csr_int64": 2 / 3 + 8 * 257 / 12 / n, "csr_int32": 1 / 2 + 4 * 257 / 8 / n, "bitmask": 1 / 32}
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    for shape, by_hand in (((256, 1024), matrix), ((64, 64, 8, 8), {"coo": 8 / 9})):
        for name, rate in by_hand.items():
            for share, smaller in ((rate - 0.003, False), (rate + 0.003, True)):
                zeros = torch.arange(n) < round(share * n)
                sizes = storage.storage_bytes({"w": torch.where(zeros, 0.0, values).view(shape)})
                assert (sizes[name] < sizes["dense"]) == smaller and 0 < sizes["dense"] - 4 * n < 2000
                assert sizes["bitmask_fp16_lossy"] < sizes["dense"]  # 2 (1 - s) n + n / 8 < 4n: always


# ----------------------------------------------------------------------------------------------------------- packed form
@pytest.mark.parametrize("prune_type", ["l1", "random"])
@both
def test_packed_trained_weights_come_back_and_are_smaller_than_the_formula_zlib_and_zstd(small_run, algorithm, prune_type):
    trained = weights(small_run(algorithm, **SHORT[algorithm] | {"prune_type": "none", "width": 1.0}))
    for rate in RATES:
        tensors = pruned(trained, prune_type, rate)
        packed = storage.pack(tensors)
        assert same(storage.unpack(packed), tensors) and storage.pack(tensors) == packed
        if not 0 < rate < 1:
            continue
        dense = storage.torch_file(tensors, lambda t: t)
        nonzero, total = (sum(count(t) for t in tensors.values()) for count in (torch.count_nonzero, torch.numel))
        assert len(packed) <= 0.88 * (4 * int(nonzero) + total / 8)
        assert len(packed) < min(len(zlib.compress(dense, 6)), len(zstandard.compress(dense, 3)))
        if rate == 0.95:  # where it comes nearest; the strongest levels take seconds
            assert len(packed) < min(len(zlib.compress(dense, 9)), len(zstandard.compress(dense, 19)))


def test_every_shape_and_special_value_comes_back_bit_for_bit_and_other_types_are_refused():
    g = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38])
    odd_nan = torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32)
    tensors = {"special": special, "nan": odd_nan, "scalar": torch.tensor(3.0), "zero": torch.tensor(0.0)}
    tensors |= {"empty": torch.empty(0, 5)}
    for shape in ((), (1,), (7, 3), (2, 3, 4, 5)):
        for rate in (0.0, 0.3, 1.0):
            t = torch.randn(shape, generator=g)
            tensors[f"{shape} {rate}"] = torch.where(torch.rand(shape, generator=g) < rate, 0.0, t)
    tensors["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert same(storage.unpack(storage.pack(tensors)), tensors)
    for name, t in tensors.items():
        assert same(storage.unpack(storage.pack({name: t})), {name: t})
    for kind in (torch.float16, torch.float64, torch.int32):
        with pytest.raises(TypeError):
            storage.pack({"w": special, "other": special.to(kind)})


@pytest.mark.parametrize("kind", [str, Path])
def test_weights_are_loaded_from_a_folder_or_either_file_by_path_or_string(kind, tmp_path):
    tensors = {"w": torch.tensor([1.0, 0.0, -2.0])}
    torch.save(tensors, tmp_path / "model.pt")
    for place in (tmp_path, tmp_path / "model.pt"):
        assert same(storage.load_weights(kind(place)), tensors)
    (tmp_path / "model.pt").unlink()
    (tmp_path / "model_packed.npz").write_bytes(storage.pack(tensors))
    for place in (tmp_path, tmp_path / "model_packed.npz"):
        assert same(storage.load_weights(kind(place)), tensors)
    (tmp_path / "model_packed.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        storage.load_weights(kind(tmp_path))


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


def test_no_file_that_is_read_may_run_code(tmp_path):
    torch.save(Runs(), tmp_path / "model.pt")
    torch.save(Runs(), tmp_path / "prune_point.pt")
    with pytest.raises(pickle.UnpicklingError):
        storage.load_weights(tmp_path)
    with pytest.raises(OSError, match="is needed for forks"):
        load_checkpoint(tmp_path / "prune_point.pt")


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
    sizes = summary(folder)["disk"]
    assert sizes == storage.storage_bytes(tensors)
    assert sizes["packed"] == (folder / "model_packed.npz").stat().st_size
    assert sizes["dense"] == (folder / "model.pt").stat().st_size
