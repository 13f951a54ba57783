"""Lossless formats for pruned weights, weighed: python scripts/compare_formats.py runs/NAME...

How model_packed.npz came to be what it is. Needs `pip install blosc2 safetensors` besides requirements.txt. Prints bytes as
shares of four bytes a value that is not zero and a bit an entry, a column a run folder. compressed-tensors is not among them:
0.20 has no format for unstructured sparsity any more, and what it had was a bitmask and raw values in safetensors.
"""

import json
import sys
import zlib
from pathlib import Path

import blosc2
import numpy as np
import pandas as pd
import zstandard
from safetensors.numpy import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from evals import games, storage

COMPRESSORS = {
    "zlib 6": lambda data: zlib.compress(data, 6),
    "zlib 9": lambda data: zlib.compress(data, 9),
    "zstd 3": lambda data: zstandard.compress(data, 3),
    "zstd 19": lambda data: zstandard.compress(data, 19),
}


def weigh(folder: Path) -> dict[str, float]:
    """Each format's share of the bytes that a bitmask and raw values take."""
    weights = storage.load_weights(folder)
    dense = storage.saved(weights, lambda t: t)
    bits = np.concatenate([t.numpy().ravel().view(np.uint32) for t in weights.values()])
    mask, values = np.packbits(bits != 0), bits[bits != 0]
    planes = [plane.tobytes() for plane in values.view(np.uint8).reshape(-1, 4).T]
    sizes = {f"dense file, {name}": len(compress(dense)) for name, compress in COMPRESSORS.items()}
    sizes["bitmask and values, safetensors"] = len(save({"mask": mask, "values": values}))
    for name, compress in COMPRESSORS.items():
        sizes[f"bitmask and values, {name}"] = len(compress(mask.tobytes())) + len(compress(values.tobytes()))
        sizes[f"bitmask and byte planes, {name}"] = sum(len(compress(part)) for part in (mask.tobytes(), *planes))
    for name in ("SHUFFLE", "BITSHUFFLE"):
        options = {"codec": blosc2.Codec.ZSTD, "clevel": 9, "filters": [blosc2.Filter[name]], "typesize": 4}
        sizes[f"dense, blosc2 {name.lower()} zstd"] = len(blosc2.compress2(bits.tobytes(), **options))
        packed = len(blosc2.compress2(values.tobytes(), **options)) + len(zstandard.compress(mask.tobytes(), 19))
        sizes[f"bitmask and values, blosc2 {name.lower()} zstd"] = packed
    sizes["model_packed.npz"] = len(storage.pack(weights))
    return {name: size / (4 * len(values) + len(bits) / 8) for name, size in sizes.items()}


if __name__ == "__main__":
    table = {}
    for folder in map(Path, sys.argv[1:]):
        if not (folder / "summary.json").is_file():
            sys.exit(f"error: RUN must be the folder of a finished run, got {folder}")
        told = json.loads((folder / "summary.json").read_text())
        table[f"{told['algorithm']} {told['arm']}"] = weigh(folder)
    print(games.markdown(pd.DataFrame(table).map("{:.3f}".format).rename_axis("format").reset_index()), end="")
