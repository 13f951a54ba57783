"""Cut the torn end off W&B files of killed runs, a copy kept beside each: python scripts/mend_wandb.py FILE.wandb...

`wandb sync` stops at a record that is not whole, says so, and exits 0. The format is that of LevelDB's log: after a header of
7 bytes, blocks of 32 kB that hold chunks, each with a checksum, a length and whether it is a whole record or a part of one.
"""

import shutil
import struct
import sys
import zlib
from pathlib import Path

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4


def good_end(data: bytes) -> int:
    """Where the last whole record ends."""
    here = good = HEADER
    while here + HEADER <= len(data):
        if BLOCK - here % BLOCK < HEADER:  # too little for a chunk: padding
            here += BLOCK - here % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[here : here + HEADER])
        chunk = data[here + HEADER : here + HEADER + length]
        if not WHOLE <= kind <= LAST or len(chunk) < length or zlib.crc32(bytes([kind]) + chunk) != checksum:
            break
        here += HEADER + length
        if kind in (WHOLE, LAST):
            good = here
    return good


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        data = file.read_bytes()
        end = good_end(data)
        if end < len(data):
            shutil.copyfile(file, file.with_name(file.name + ".torn"))
            with open(file, "r+b") as stream:
                stream.truncate(end)
            print(f"mended {file}: {len(data) - end} bytes of a record that was never finished are gone")


if __name__ == "__main__":
    main()
