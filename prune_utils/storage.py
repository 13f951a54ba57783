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

from prune_utils.basics import Tensors

MODELS = ("model.pt", "model_packed.npz")
DIGEST = 64  # hexadecimal digits of SHA-256


class BrokenFile(ValueError):
    """A file that is no whole packed model: cut short, altered, or something else."""


def pack(weights: Tensors) -> bytes:
    """fp32 tensors of any shape as a compressed .npz file of the entries that are not +0.0.

    `header` has names, types and shapes, and `mask` one bit per entry. `values_4` has the first byte of every value, then the
    second, and so on: the byte with the exponent compresses, mantissas are noise. The archive's comment is the SHA-256 of all
    before it. Equal weights make equal files.
    """
    header = json.dumps([[name, "float32", list(t.shape)] for name, t in weights.items()]).encode()
    flat = [t.detach().cpu().contiguous().reshape(-1).numpy() for t in weights.values()]
    bits = np.concatenate(flat, dtype="<f4", casting="no").view("<u4")
    values = bits[bits != 0].view(np.uint8).reshape(-1, 4).T.copy()  # (4, values)
    file = io.BytesIO()
    np.savez_compressed(file, header=np.frombuffer(header, np.uint8), mask=np.packbits(bits != 0), values_4=values)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(DIGEST)
    data = file.getvalue()[:-DIGEST]
    return data + hashlib.sha256(data).hexdigest().encode()


def unpack(data: bytes) -> Tensors:
    """The tensors that were packed, bit for bit. Raises BrokenFile; nothing in a file can run."""
    if hashlib.sha256(data[:-DIGEST]).hexdigest().encode() != data[-DIGEST:]:
        raise BrokenFile("cut short, altered, or no packed model")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            header, mask, values = json.loads(bytes(archive["header"])), archive["mask"], archive["values_4"]
        shapes = {name: shape for name, kind, shape in header if kind == "float32"}
        counts = [math.prod(shape) for shape in shapes.values()]
        chosen = np.unpackbits(mask)[: sum(counts)].astype(bool)
        if len(mask) != -(-sum(counts) // 8) or values.shape != (4, chosen.sum()):
            raise ValueError("its header, mask and values do not fit each other")
        bits = np.zeros((len(chosen), 4), np.uint8)
        bits[chosen] = values.T
        flat = torch.from_numpy(bits.reshape(-1)).view(torch.float32).split(counts)
        return {name: t.reshape(shape) for (name, shape), t in zip(shapes.items(), flat, strict=True)}
    except Exception as error:  # whatever a stranger's file makes the readers say
        raise BrokenFile(f"no packed model ({type(error).__name__}: {error})") from None


def load_weights(path: Path | str) -> Tensors:
    """The weights of a run folder, a model.pt or a model_packed.npz. Raises OSError, or what the readers say of a bad file."""
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in MODELS if (path / name).exists()), path / MODELS[0])
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


def torch_file(weights: Tensors, convert) -> bytes:
    """What torch.save writes of these weights, matrices and kernels converted."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch warns once that CSR is in beta
        torch.save({name: convert(t) if t.dim() > 1 else t for name, t in weights.items()}, file)
    return file.getvalue()


def storage_bytes(weights: Tensors) -> dict[str, int]:
    """Bytes of these weights in each format: of real files, written to memory."""
    files = {name: torch_file(weights, convert) for name, convert in FORMATS.items()}
    files |= {"zlib_of_dense": zlib.compress(files["dense"]), "zstd_of_dense": zstandard.compress(files["dense"])}
    return {name: len(file) for name, file in files.items()} | {"packed": len(pack(weights))}
