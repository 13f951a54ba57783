"""A network on disk: the bytes of each format, and the packed file, the smallest of the lossless ones."""

import hashlib
import io
import json
import math
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
import zstandard

Weights = dict[str, torch.Tensor]
DIGEST = 64  # hexadecimal digits of SHA-256
KINDS = ("float32", "float16", "bfloat16", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
DTYPES = {kind: getattr(torch, kind) for kind in KINDS}


class BrokenFile(ValueError):
    """A file that is no whole packed model: cut short, altered, or something else."""


def pack(weights: Weights) -> bytes:
    """Tensors (types: DTYPES; any shape) as a compressed .npz: which entries are not +0.0, and the bytes of those.

    `header` holds names, types and shapes, `mask` one bit per entry, `values_<size>` the values of that many bytes: the first
    byte of all, then the second, since the byte with the exponent compresses and mantissas are noise. The archive's comment is
    the SHA-256 of all before it. Equal weights make equal files.
    """
    header, masks, values = [], [], {}
    for name, t in weights.items():
        bits = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().view(f"<u{t.element_size()}")
        header.append([name, str(t.dtype).removeprefix("torch."), list(t.shape)])
        masks.append(bits != 0)
        values.setdefault(t.element_size(), []).append(bits[bits != 0])
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), "mask": np.packbits(np.concatenate(masks))}
    for size, parts in values.items():
        arrays[f"values_{size}"] = np.concatenate(parts).view(np.uint8).reshape(-1, size).T.copy()  # (size, values)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(DIGEST)
    data = file.getvalue()[:-DIGEST]
    return data + hashlib.sha256(data).hexdigest().encode()


def unpack(data: bytes) -> Weights:
    """The tensors that were packed, bit for bit. Raises BrokenFile; nothing in a file can run."""
    if hashlib.sha256(data[:-DIGEST]).hexdigest().encode() != data[-DIGEST:]:
        raise BrokenFile("cut short, altered, or no packed model")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            header = [(name, DTYPES[kind], shape) for name, kind, shape in json.loads(bytes(archive["header"]))]
            counts = {name: math.prod(shape) for name, _, shape in header}
            entries, mask = sum(counts.values()), archive["mask"]
            values = {size: archive[f"values_{size}"] for size in {kind.itemsize for _, kind, _ in header}}
        if len(counts) != len(header) or mask.dtype != np.uint8 or len(mask) != -(-entries // 8):
            raise ValueError("its header and mask do not fit each other")
        mask = np.unpackbits(mask, count=entries).astype(bool)
        weights, here, used = {}, 0, dict.fromkeys(values, 0)
        for name, kind, shape in header:
            chosen = mask[here : here + counts[name]]
            bits, count = np.zeros((len(chosen), kind.itemsize), np.uint8), int(chosen.sum())
            bits[chosen] = values[kind.itemsize][:, used[kind.itemsize] : used[kind.itemsize] + count].T
            weights[name] = torch.from_numpy(bits.reshape(-1)).view(kind).reshape(shape)
            here, used[kind.itemsize] = here + len(chosen), used[kind.itemsize] + count
        if {size: (size, count) for size, count in used.items()} != {size: kept.shape for size, kept in values.items()}:
            raise ValueError("its mask and values do not fit each other")
    except Exception as error:  # whatever a stranger's file makes the readers say
        raise BrokenFile(f"no packed model ({type(error).__name__}: {error})") from None
    return weights


def load_weights(path: Path | str) -> Weights:
    """The weights of a run folder, a model.pt or a model_packed.npz. Raises OSError, or what the readers say of a bad file."""
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in ("model.pt", "model_packed.npz") if (path / name).exists()), path / "model.pt")
    return unpack(path.read_bytes()) if path.suffix == ".npz" else torch.load(path, weights_only=True, map_location="cpu")


def csr(t: torch.Tensor, index: torch.dtype) -> torch.Tensor:
    """A tensor as a CSR matrix, one row per output unit. Indices are copied: views into COO storage would be saved whole."""
    t = t.flatten(1).to_sparse_csr()
    return torch.sparse_csr_tensor(
        t.crow_indices().to(index, copy=True), t.col_indices().to(index, copy=True), t.values(), t.shape
    )


def bitmask(t: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"mask": torch.from_numpy(np.packbits(t.numpy() != 0)), "values": t[t != 0]}


def halves(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lossy: fp16 has 11 bits of precision where fp32 has 24."""
    return {name: part.half() if name == "values" else part for name, part in bitmask(t).items()}


FORMATS = {
    "dense": lambda t: t,
    "coo": lambda t: t.to_sparse().coalesce(),
    "csr_int64": lambda t: csr(t, torch.int64),
    "csr_int32": lambda t: csr(t, torch.int32),
    "bitmask": bitmask,
    "bitmask_fp16_lossy": halves,
}
"""what torch.save gets of a matrix or a kernel; vectors (biases) stay dense"""


def saved(weights: Weights, convert) -> bytes:
    """What torch.save writes of these weights, matrices and kernels converted."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch warns once that CSR is in beta
        torch.save({name: convert(t) if t.dim() > 1 else t for name, t in weights.items()}, file)
    return file.getvalue()


def storage_bytes(weights: Weights) -> dict[str, int]:
    """Bytes of these weights in each format: of real files, written to memory."""
    files = {name: saved(weights, convert) for name, convert in FORMATS.items()}
    files |= {"zlib_of_dense": zlib.compress(files["dense"]), "zstd_of_dense": zstandard.compress(files["dense"])}
    return {name: len(file) for name, file in files.items()} | {"packed": len(pack(weights))}
