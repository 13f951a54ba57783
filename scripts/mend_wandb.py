"""Cut the torn end off W&B files of killed runs and keep a copy of each: python scripts/mend_wandb.py FILE.wandb...

`wandb sync` stops at a record that is not whole, says so, and exits 0. The format is that of LevelDB's log: a header of
7 bytes, then blocks of 32 kB. A block holds chunks. Each has a checksum, a length, and a kind: a whole record or a part of one.
"""

import shutil
import struct
import sys
import zlib
from pathlib import Path

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4  # kinds of chunks; 2 and 3 are the first and the middle parts of a record


def good_end(data: bytes) -> int:
    """Where the last whole record ends."""
    position = end = HEADER
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # too little for a chunk: padding
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        chunk = data[position + HEADER : position + HEADER + length]
        if not WHOLE <= kind <= LAST or len(chunk) < length or zlib.crc32(bytes([kind]) + chunk) != checksum:
            break
        position += HEADER + length
        if kind in (WHOLE, LAST):
            end = position
    return end


def main() -> None:
    if "--help" in sys.argv or len(sys.argv) == 1:
        print(__doc__)
        return
    for file in map(Path, sys.argv[1:]):
        data = file.read_bytes()
        end = good_end(data)
        if end < len(data):
            shutil.copyfile(file, file.with_name(file.name + ".torn"))
            with open(file, "r+b") as stream:
                stream.truncate(end)
            print(f"mended {file}: cut off {len(data) - end} bytes of a record that was never finished")


if __name__ == "__main__":
    main()
